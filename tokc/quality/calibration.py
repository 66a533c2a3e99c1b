"""What the linear layers of a model read when it reads a text: the statistics that quantization is fitted to.

A program is cut at its residual stream (`tokc.ir.cutting`). Part after part runs over all windows of the
text, so that no more is held than the hidden states between two parts and one part's statistics. A part runs
twice: with its weights as they were, to collect, and with what became of them, so that every later part sees
the errors of those before it, as Frantar et al. 2022 (GPTQ, arXiv:2210.17323) have it.

Sums are taken in a fixed order and each product by one thread, so that results are the same to the bit
whatever the number of threads.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from tokc.errors import PassFailed, TokcError
from tokc.ir.cutting import Array, CutProgram
from tokc.ir.execute import Session
from tokc.ir.program import Program
from tokc.quality.text import calibration_text, windows

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Progress = Callable[[str], object]

BUNDLED = "tokc's calibration text"
WINDOWS, WINDOW = 32, 512  # how many, and tokens in each
AT_ONCE = 4  # windows whose activations are held together
SAMPLED = 61  # of so many tokens one is kept as it is
BLOCK = 512  # rows and columns of a Gram matrix that one thread sums


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on: a text, or token ids [windows, tokens] in its place, and how.

    `unfinished` is a folder for finished layers, by which an interrupted run goes on; None keeps none.
    With `shapes_only` nothing runs: passes make weights of the right shapes that nobody will read.
    """

    text: str = field(default_factory=calibration_text)
    name: str = BUNDLED
    ids: I64 | None = None
    windows: int = WINDOWS
    tokens: int = WINDOW
    threads: int = 2
    progress: Progress = lambda _: None
    unfinished: Path | None = None
    shapes_only: bool = False

    @classmethod
    def of_file(cls, path: Path) -> "Calibration":
        """Return one on a text file. Raises: TokcError if it cannot be read as UTF-8."""
        try:
            return cls(path.read_text(encoding="utf-8"), path.name)
        except (OSError, UnicodeDecodeError) as error:
            raise TokcError(f"cannot read the calibration text '{path}': {error}") from error

    @property
    def sha256(self) -> str:
        """Return the hash of what is calibrated on."""
        data = self.text.encode() if self.ids is None else self.ids.astype("<i8").tobytes()
        return hashlib.sha256(data).hexdigest()

    def record(self, program: Program, **more: str) -> Program:
        """Return the program with a record of what its weights were fitted to: name, size and hash.

        What is stated beside that is recorded, too, where it is not empty.
        """
        shape = self.token_ids(program).shape
        stated = {
            "text": self.name if self.ids is None else "token ids",
            "characters": str(len(self.text) if self.ids is None else 0),
            "tokens": f"{shape[0]} windows of {shape[1]}",
            "sha256": self.sha256,
            **{key: text for key, text in more.items() if text},
        }
        return program.replace(assets=replace(program.assets, calibration=stated))

    def token_ids(self, program: Program) -> I64:
        """Return the windows as the program reads them, each beginning as its tokenizer begins a text.

        Raises: TokcError if there is no tokenizer, or the text is shorter than one window.
        """
        if self.ids is not None:
            return self.ids
        if program.assets.tokenizer_json is None:
            raise TokcError(
                "the model has no tokenizer, so that no calibration text can be read to it",
                hint="methods without calibration need none: method=rtn-mse or method=hqq",
            )
        tokenizer = Tokenizer.from_str(program.assets.tokenizer_json)
        ids = tokenizer.encode(self.text, add_special_tokens=False).ids
        length = min(self.tokens, program.config.context)
        found = windows(ids, count=self.windows, length=length)
        begin = program.config.bos_token_id
        if begin is not None and tokenizer.encode("a").ids[0] == begin:
            found[:, 0] = begin
        if found.max() >= program.config.vocab:
            raise TokcError("the tokenizer makes tokens that the model does not read")
        return found


_calibration: ContextVar[Calibration | None] = ContextVar("calibration", default=None)


def calibration() -> Calibration:
    """Return what passes calibrate on: what `calibrating` says, else the bundled text."""
    return _calibration.get() or Calibration()


@contextmanager
def calibrating(on: Calibration) -> Iterator[None]:
    """Let passes that run inside calibrate on this."""
    token = _calibration.set(on)
    try:
        yield
    finally:
        _calibration.reset(token)


@dataclass(frozen=True)
class Statistics:
    """State what a linear layer read: ``gram = X.T @ X`` [in, in], ``mean |X|``, ``max |X|`` [in], X's rows.

    `sample` [n, in] are some of these rows, evenly spread over the text.
    """

    gram: F32
    mean_abs: F32
    tokens: int
    max_abs: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    sample: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def error(self, difference: F32) -> F64:
        """Return the squared error that weights off by `difference` [out, in] make, a row each, a token."""
        weighed = difference @ self.gram
        weighed *= difference
        error: F64 = weighed.sum(axis=1, dtype=np.float64) / self.tokens
        return error


@dataclass(frozen=True)
class Layer:
    """One part of the program while it is calibrated: its linear layers, and how to look at what they read.

    `constants` are by value: the weights [out, in] of the linear layers in f32, and whatever else is put
    there. What they are when the caller is done is what the part is run with before the next one begins.
    """

    number: int
    total: int
    linears: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    constants: dict[ir.Value, F32]
    collect: Callable[[], dict[ir.Value, Statistics]]

    def weight(self, node: ir.Node) -> F32:
        """Return the weight of a linear layer."""
        return self.constants[_operand(node, 1)]


def layers(
    program: Program, linears: Collection[ir.Node], read: Callable[[ir.Value], F32], on: Calibration
) -> Iterator[Layer]:
    """Go through the parts of a batch program that hold `linears`, in order; `read` gives a weight in f32.

    Raises: PassFailed if the program cannot be cut; TokcError if the text cannot be read to it.
    """
    if program.form != "batch":
        raise PassFailed("only a program of batch form is calibrated", hint="calibrate before kv-layout")
    cut = CutProgram(program, linears)
    wanted = set(linears)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(on.threads) as pool:
        run = _Run(cut, on.token_ids(program), pool)
        found = [tuple(node for node in part.nodes if node in wanted) for part in cut.parts]
        for index, part in enumerate(cut.parts):
            weights = {value: read(value) for value in (_operand(node, 1) for node in found[index])}
            if weights:
                on.progress(f"calibrate part {index + 1} of {len(cut.parts)}")
                inputs = list(dict.fromkeys(_operand(node, 0) for node in found[index]))
                collect = partial(run.collect, index, inputs, weights)
                yield Layer(index + 1, len(cut.parts), found[index], part.nodes, weights, collect)
            if index + 1 < len(cut.parts):
                run.forward(index, weights)


class _Run:
    """The hidden states of all windows between two parts."""

    def __init__(self, cut: CutProgram, ids: I64, pool: ThreadPoolExecutor) -> None:
        self.cut, self.pool = cut, pool
        config, count = cut.source.config, ids.shape[1]
        names = [str(value.name) for value in cut.source.graph.inputs]
        past = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
        self.shared: dict[str, Array] = dict.fromkeys(names[2:], past)
        self.shared[names[1]] = np.arange(count)[None]
        self.states: list[dict[str, Array]] = [{names[0]: window[None]} for window in ids]

    def forward(self, index: int, constants: Mapping[ir.Value, Array]) -> None:
        """Run a part over all windows and keep what leaves it."""
        part, beside = self.cut.parts[index], self.cut.handed_on(index)
        leaving = [str(value.name) for value in part.leaving]
        with self._session(index, [*part.leaving, *beside], constants) as session:

            def step(window: int) -> None:
                answer = session.run(self._feeds(window, session))
                self.states[window] = {name: answer[name] for name in leaving}
                if window == 0:  # what is beside the stream is the same for every window
                    made.update({str(value.name): answer[str(value.name)] for value in beside})

            made: dict[str, Array] = {}
            list(self.pool.map(step, range(len(self.states))))
        self.shared |= made

    def collect(
        self, index: int, inputs: list[ir.Value], constants: Mapping[ir.Value, Array]
    ) -> dict[ir.Value, Statistics]:
        """Run a part over all windows and sum up what its linear layers read."""
        sums = {value: _Sums() for value in inputs}
        made = [value for value in inputs if value not in self.cut.parts[index].entering]
        with self._session(index, made, constants) as session:

            def step(window: int) -> dict[str, Array]:
                return {**self.states[window], **session.run(self._feeds(window, session))}

            for start in range(0, len(self.states), AT_ONCE):
                some = range(start, min(start + AT_ONCE, len(self.states)))
                answers = list(self.pool.map(step, some))
                for value in inputs:
                    rows = [np.asarray(answer.pop(str(value.name)), np.float32) for answer in answers]
                    stacked = np.concatenate([one.reshape(-1, one.shape[-1]) for one in rows])
                    sums[value].add(stacked, self.pool)
        return {value: one.statistics() for value, one in sums.items()}

    def _session(self, index: int, outputs: list[ir.Value], constants: Mapping[ir.Value, Array]) -> Session:
        """Return a session of one thread: windows run side by side, each in a fixed order of sums."""
        part = self.cut.program(index, outputs, constants)
        return Session(part, threads=1, keep_memory=bool(constants))  # a table is unpacked for each window

    def _feeds(self, window: int, session: Session) -> dict[str, Array]:
        known = {**self.shared, **self.states[window]}
        return {name: known[name] for name in session.input_names}


class _Sums:
    """Sum up the Gram matrix and the magnitudes of rows that come in pieces."""

    def __init__(self) -> None:
        self.gram: F32 = np.zeros((0, 0), np.float32)
        self.magnitude: F64 = np.zeros(0)
        self.largest: F32 = np.zeros(0, np.float32)
        self.samples: list[F32] = []
        self.tokens = 0

    def add(self, rows: F32, pool: ThreadPoolExecutor) -> None:
        """Add rows [tokens, in]; each thread sums blocks of its own, those on and above the diagonal."""
        width = rows.shape[1]
        if not self.tokens:
            self.gram, self.magnitude = np.zeros((width, width), np.float32), np.zeros(width)
            self.largest = np.zeros(width, np.float32)
        edges = [slice(start, min(start + BLOCK, width)) for start in range(0, width, BLOCK)]

        def block(pair: tuple[slice, slice]) -> None:
            self.gram[pair] += rows[:, pair[0]].T @ rows[:, pair[1]]

        list(pool.map(block, [(i, j) for at, i in enumerate(edges) for j in edges[at:]]))
        magnitude = np.abs(rows)
        self.magnitude += magnitude.sum(axis=0, dtype=np.float64)
        np.maximum(self.largest, magnitude.max(axis=0), out=self.largest)
        self.samples.append(rows[SAMPLED // 2 :: SAMPLED].copy())
        self.tokens += len(rows)

    def statistics(self) -> Statistics:
        """Return the sums, the part below the diagonal filled in."""
        width = len(self.gram)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            self.gram[end:, start:end] = self.gram[start:end, end:].T
            square = self.gram[start:end, start:end]
            square[:] = np.triu(square) + np.triu(square, 1).T
        mean = (self.magnitude / self.tokens).astype(np.float32)
        return Statistics(self.gram, mean, self.tokens, self.largest, np.concatenate(self.samples))


def _operand(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    assert value is not None, f"'{node.op_type}' lacks an operand"
    return value
