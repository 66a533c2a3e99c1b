"""What looks on while a pipeline runs: dumps, timing, verification, the differential check and the ledger."""

import sys
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tokc.errors import PassFailed, VerifyFailed
from tokc.ir import text
from tokc.ir.ops import program_cost
from tokc.ir.program import Program
from tokc.ir.verify import verify
from tokc.passes.base import Pass
from tokc.pipeline import Observer, Pipeline, Step, pass_text
from tokc.quality.divergence import F32, Divergence, divergence, logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

PROMPT = (
    "The capital of France is Paris. Water boils at 100 degrees. A compiler turns a program into another one."
)
PROMPT_SEQUENCES, PROMPT_TOKENS, PROMPT_CACHED_FROM = 2, 12, 10
EXACT_TOLERANCE = 1e-4  # of the largest logit: what another order of f32 sums may change
LOSSY_MAX_KL = 1.0  # nats, where a pass that is not exact states no bound of its own
LOWERED_MAX_KL = (
    1e-2  # nats: kernels sum in another order, and a rounded activation may then move by one step
)
PRICED_CONTEXT = 512  # tokens in the cache of the decoded token that the ledger prices

_KL = "mean KL to the program before it, in nats,"


@runtime_checkable
class Lossy(Protocol):
    """State by how much a pass that is not exact may change the answers: a mean KL in nats, 0 for none."""

    @property
    def max_kl(self) -> float:
        """Return the bound."""


@dataclass(frozen=True)
class LedgerEntry:
    """Record what one pass did: its time, and the program's size, price and answers before and after.

    FLOPs and bytes are those of one decoded token of one sequence with `PRICED_CONTEXT` tokens in its cache.
    Divergences are None where the pass changed nothing or the check is off.
    """

    pass_spec: str
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    flops_before: float
    flops_after: float
    bytes_before: float
    bytes_after: float
    exact: bool
    max_abs_logit_diff: float | None = None
    kl_mean: float | None = None
    top1_agree: float | None = None
    check_seconds: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return what `json.dumps` takes, without times: the same build twice writes the same bytes."""
        facts = {**asdict(self), "notes": list(self.notes)}
        return {name: fact for name, fact in facts.items() if name not in {"seconds", "check_seconds"}}


@dataclass(frozen=True)
class DumpIr:
    """Write `000_imported` and, after each pass that changed something, `003_fuse-qkv`, to a folder."""

    directory: Path
    written: list[Path] = field(default_factory=list)

    def after_pass(self, step: Step) -> None:
        """Write what the step made."""
        if not self.written:
            self._write(0, "imported", step.before)
        if step.changed:
            self._write(step.number, step.pass_.name, step.after)

    def _write(self, number: int, name: str, program: Program) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.written.append(text.dump(program, self.directory / f"{number:03d}_{name}"))


@dataclass(frozen=True)
class PrintAfter:
    """Print the program after the named passes, or after every one that changed something."""

    write: Callable[[str], object]
    names: Collection[str] | None = None

    def after_pass(self, step: Step) -> None:
        """Print what the step made."""
        wanted = step.changed if self.names is None else step.pass_.name in self.names
        if wanted:
            self.write(f"// after pass {step.number} of {step.total}, {pass_text(step.pass_)}")
            self.write(text.render(step.after))


@dataclass(frozen=True)
class VerifyEach:
    """Verify the program after each pass that changed something."""

    def after_pass(self, step: Step) -> None:
        """Verify what the step made; the error names the pass."""
        if not step.changed:
            return
        try:
            verify(step.after)
        except VerifyFailed as error:
            problem = (
                f"pass {step.number} of {step.total}, {step.pass_.name}, broke the program: {error.problem}"
            )
            raise VerifyFailed(problem, where=error.where, hint=error.hint) from error


@dataclass
class Timer:
    """Record how long each pass took, in seconds."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def after_pass(self, step: Step) -> None:
        """Record the step's time."""
        self.seconds.append((pass_text(step.pass_), step.seconds))


class DifferentialCheck:
    """Run the program before and after each pass that changed something, and compare the answers.

    Two short sequences are prefilled, then decoded over their cache; a batch program and a ragged one are fed
    the same tokens. Each stage runs once: what one pass made is what the next one starts from. An exact pass
    may differ by `EXACT_TOLERANCE` of the largest logit, a lossy one by the mean KL that it states.
    """

    def __init__(self, *, max_elements: int = 1 << 29) -> None:
        """Check programs of at most `max_elements` weights, which onnxruntime holds in f32."""
        self.max_elements = max_elements
        self.measured: dict[int, Divergence] = {}
        self.seconds: dict[int, float] = {}
        self.note: str | None = None
        self._first: F32 | None = None
        self._last: F32 | None = None

    def after_pass(self, step: Step) -> None:
        """Compare the answers before and after the step.

        Raises:
            PassFailed: they differ by more than the pass allows.
        """
        if not step.changed or not self._fits(step.before):
            return
        start_s = time.perf_counter()
        if self._last is None:
            self._first = self._last = _answers(step.before)
        answers = _answers(step.after)
        measured = divergence(self._last, answers)
        _hold(step, measured, float(np.abs(self._last).max()))
        self._last = answers
        self.measured[step.number] = measured
        self.seconds[step.number] = time.perf_counter() - start_s

    def compare(self, program: Program, answers: F32) -> Divergence | None:
        """Return how far `answers` are from those of `program`, which ran last; None if it is too large."""
        if not self._fits(program):
            return None
        if self._last is None:
            self._first = self._last = _answers(program)
        return divergence(self._last, answers)

    def final(self) -> Divergence | None:
        """Return how far the last program's answers are from the first one's."""
        if self._first is None or self._last is None:
            return None
        return divergence(self._first, self._last)

    def _fits(self, program: Program) -> bool:
        tensors = (value.const_value for value in program.graph.initializers.values())
        elements = sum(tensor.size for tensor in tensors if tensor is not None)
        if elements <= self.max_elements:
            return True
        self.note = (
            f"not compared: {elements} weights are more than the {self.max_elements} that a check may hold"
        )
        return False


class Ledger:
    """Record every pass; `check` (run before the ledger) contributes the divergences."""

    def __init__(self, check: DifferentialCheck | None = None) -> None:
        self.check = check
        self.entries: list[LedgerEntry] = []

    def after_pass(self, step: Step) -> None:
        """Record the step."""
        measured = None if self.check is None else self.check.measured.get(step.number)
        entry = LedgerEntry(
            pass_spec=pass_text(step.pass_),
            seconds=step.seconds,
            changed=step.changed,
            exact=_max_kl(step.pass_) == 0,
            **_sizes(step.before, step.after),
        )
        if self.check is not None and step.changed:
            notes = (self.check.note,) if self.check.note else ()
            entry = replace(entry, check_seconds=self.check.seconds.get(step.number), notes=notes)
        self.entries.append(entry if measured is None else _with_divergence(entry, measured))


@dataclass(frozen=True)
class Announce:
    """Say which pass has run and what it did."""

    say: Callable[[str], object]

    def after_pass(self, step: Step) -> None:
        """Say so."""
        done = (
            f"{len(step.before.graph)} -> {len(step.after.graph)} nodes" if step.changed else "nothing to do"
        )
        self.say(f"pass {step.number} of {step.total}, {step.pass_.name}: {done}")


class Instruments:
    """The observers of a build: verification always, the rest as asked for.

    `print_after` names passes, "all" for each that changes something; programs are printed to standard error.
    """

    def __init__(
        self,
        *,
        check: bool = True,
        dump_ir: Path | None = None,
        print_after: Collection[str] = (),
        progress: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.check = check
        self._progress = progress
        self._check = DifferentialCheck() if check else None
        self._ledger = Ledger(self._check)
        self._observers: list[Observer] = [Announce(progress), VerifyEach()]
        if dump_ir is not None:
            self._observers.append(DumpIr(dump_ir))
        if print_after:
            names = None if "all" in print_after else print_after
            self._observers.append(PrintAfter(lambda line: sys.stderr.write(f"{line}\n"), names))
        if self._check is not None:
            self._observers.append(self._check)
        self._observers.append(self._ledger)

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Return what was recorded so far."""
        return tuple(self._ledger.entries)

    @property
    def final(self) -> Divergence | None:
        """Return how far the last program is from the imported one, None where nothing was compared."""
        return None if self._check is None else self._check.final()

    def run(self, pipeline: Pipeline, program: Program, *, stop_after: str | None = None) -> Program:
        """Run the pipeline under observation.

        Raises: TokcError of the pass or check that failed.
        """
        return pipeline.run(program, self._observers, stop_after=stop_after)

    def check_lowered(self, artifact: Path, program: Program) -> LedgerEntry | None:
        """Run the artifact on this machine, compare it with the last program, and record that as `lower`.

        Raises: PassFailed if its answers differ by more than `LOWERED_MAX_KL`.
        """
        if self._check is None:
            return None
        start_s = time.perf_counter()
        answers = lowered_answers(artifact, _prompt(program))
        measured = self._check.compare(program, answers)
        if measured is None:
            return None
        _within("lowering", "lower", LOWERED_MAX_KL, measured.kl_mean, _KL)
        seconds = time.perf_counter() - start_s
        entry = LedgerEntry("lower", seconds, changed=True, exact=False, **_sizes(program, program))
        self._ledger.entries.append(_with_divergence(replace(entry, check_seconds=seconds), measured))
        return self._ledger.entries[-1]


def lowered_answers(artifact: Path, token_ids: npt.NDArray[np.int64]) -> F32:
    """Run an artifact's plan over token ids [sequences, tokens]: a prefill, then decoding over the cache."""
    with closing(CpuExecutor.open(Artifact.open(artifact, verify=False))) as executor:
        sequences, tokens = token_ids.shape
        blocks = -(-tokens // executor.page_size)
        tables = np.arange(sequences * blocks, dtype=np.int32)[::-1].reshape(sequences, blocks)
        parts = []
        for start, end in pairwise([0, *range(PROMPT_CACHED_FROM, tokens + 1)]):
            width = end - start
            batch = Batch(
                input_ids=token_ids[:, start:end].reshape(-1).astype(np.int32),
                positions=np.tile(np.arange(start, end, dtype=np.int32), sequences),
                sequences=np.repeat(np.arange(sequences, dtype=np.int32), width),
                block_tables=np.ascontiguousarray(tables),
                logit_rows=np.arange(sequences * width, dtype=np.int32),
            )
            parts.append(executor.step(batch).reshape(sequences, width, -1).copy())
        return np.concatenate(parts, axis=1)


def _answers(program: Program) -> F32:
    return logits(program, _prompt(program), cached_from=PROMPT_CACHED_FROM)


def _prompt(program: Program) -> npt.NDArray[np.int64]:
    """Return token ids [sequences, tokens] of a fixed text, or fixed ids where there is no tokenizer."""
    config, wanted = program.config, PROMPT_SEQUENCES * PROMPT_TOKENS
    ids: list[int] = []
    if program.assets.tokenizer_json is not None:
        ids = Tokenizer.from_str(program.assets.tokenizer_json).encode(PROMPT).ids
    if len(ids) < wanted or max(ids) >= config.vocab:
        ids = [7919 * (index + 1) % config.vocab for index in range(wanted)]
    return np.array(ids[:wanted]).reshape(PROMPT_SEQUENCES, PROMPT_TOKENS)


def _max_kl(pass_: Pass) -> float:
    """Return the mean KL that a pass may cost, 0 if it is held to the tolerance of exact passes."""
    if pass_.exact:
        return 0.0
    return pass_.max_kl if isinstance(pass_, Lossy) else LOSSY_MAX_KL


def _hold(step: Step, measured: Divergence, largest_logit: float) -> None:
    """Raise if the answers moved by more than the pass allows."""
    what, where = f"pass {step.number} of {step.total}, {step.pass_.name},", pass_text(step.pass_)
    max_kl = _max_kl(step.pass_)
    if max_kl:
        _within(what, where, max_kl, measured.kl_mean, _KL)
    else:
        limit = EXACT_TOLERANCE * largest_logit
        _within(what, where, limit, measured.max_abs_logit_diff, "largest logit change")


def _within(what: str, where: str, limit: float, found: float, measure: str) -> None:
    """Raise if `found` is over the limit; what is not a number never passes."""
    if not found <= limit:
        raise PassFailed(
            f"{what} changed the answers: its {measure} is {found:.3g}, allowed is {limit:.3g}",
            where=where,
            hint="build with --no-check to keep the result all the same, or with --dump-ir to look at it",
        )


class _Sizes(TypedDict):
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    flops_before: float
    flops_after: float
    bytes_before: float
    bytes_after: float


def _sizes(before: Program, after: Program) -> _Sizes:
    costs = [program_cost(program, tokens=1, context=PRICED_CONTEXT) for program in (before, after)]
    return {
        "nodes_before": len(before.graph),
        "nodes_after": len(after.graph),
        "weight_bytes_before": before.weight_bytes(),
        "weight_bytes_after": after.weight_bytes(),
        "flops_before": costs[0].flops,
        "flops_after": costs[1].flops,
        "bytes_before": costs[0].bytes,
        "bytes_after": costs[1].bytes,
    }


def _with_divergence(entry: LedgerEntry, measured: Divergence) -> LedgerEntry:
    return replace(
        entry,
        max_abs_logit_diff=measured.max_abs_logit_diff,
        kl_mean=measured.kl_mean,
        top1_agree=measured.top1_agree,
    )
