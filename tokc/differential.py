"""The differential check: the program before and after each pass, run over the same tokens and compared."""

import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tokc.errors import PassFailed
from tokc.ir.ops import OPS, attributes_of
from tokc.ir.program import Program
from tokc.passes.base import Pass
from tokc.pipeline import Step, pass_text
from tokc.quality.divergence import F32, Divergence, divergence, logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.table import executor_for

PROMPT = (
    "The capital of France is Paris. Water boils at 100 degrees. A compiler turns a program into another, "
    "which means the same and runs faster."
)
PROMPT_SEQUENCES, PROMPT_TOKENS, PROMPT_CACHED_FROM = 2, 12, 11
EXACT_TOLERANCE = 1e-4  # of the largest logit: what another order of f32 sums may change
LOSSY_MAX_KL = 1.0  # nats, where a pass that is not exact states no bound of its own
LOWERED_MAX_KL = 1e-4  # nats: kernels have their own exp and their own order of sums
ROUNDED_MAX_KL = 0.02  # nats: where activations are rounded, another order of sums moves some by a step
_KL = "mean KL to the program before it, in nats,"


@runtime_checkable
class Lossy(Protocol):
    """State by how much a pass that is not exact may change the answers: a mean KL in nats, 0 for none."""

    @property
    def max_kl(self) -> float:
        """Return the bound."""


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

    def after_lowering(self, artifact: Path, program: Program) -> Divergence | None:
        """Run the artifact on this machine and compare it with `program`, which ran last; None if too large.

        Raises:
            PassFailed: they differ by more than another order of sums explains.
        """
        if not self._fits(program):
            return None
        if self._last is None:
            self._first = self._last = _answers(program)
        measured = divergence(self._last, lowered_answers(artifact, prompt(program)))
        limit = ROUNDED_MAX_KL if _rounds(program) else LOWERED_MAX_KL
        _within("lowering", str(artifact), limit, measured.kl_mean, _KL)
        return measured

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


def lowered_answers(artifact: Path, token_ids: npt.NDArray[np.int64]) -> F32:
    """Run an artifact's plan over token ids [sequences, tokens]: a prefill, then decoding over the cache."""
    with closing(executor_for(Artifact.open(artifact, verify=False))) as executor:
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
    return logits(program, prompt(program), cached_from=PROMPT_CACHED_FROM)


def prompt(program: Program) -> npt.NDArray[np.int64]:
    """Return token ids [sequences, tokens] of a fixed text, or fixed ids where there is no tokenizer."""
    config, wanted = program.config, PROMPT_SEQUENCES * PROMPT_TOKENS
    ids: list[int] = []
    if program.assets.tokenizer_json is not None:
        ids = Tokenizer.from_str(program.assets.tokenizer_json).encode(PROMPT).ids
    if len(ids) < wanted or max(ids) >= config.vocab:
        ids = [7919 * (index + 1) % config.vocab for index in range(wanted)]
    return np.array(ids[:wanted]).reshape(PROMPT_SEQUENCES, PROMPT_TOKENS)


def max_kl_of(pass_: Pass) -> float:
    """Return the mean KL that a pass may cost, 0 if it is held to the tolerance of exact passes."""
    if pass_.exact:
        return 0.0
    return pass_.max_kl if isinstance(pass_, Lossy) else LOSSY_MAX_KL


def _hold(step: Step, measured: Divergence, largest_logit: float) -> None:
    """Raise if the answers moved by more than the pass allows."""
    what, where = f"pass {step.number} of {step.total}, {step.pass_.name},", pass_text(step.pass_)
    max_kl = max_kl_of(step.pass_) or (ROUNDED_MAX_KL if _rounds(step.before) else 0.0)
    if max_kl:
        _within(what, where, max_kl, measured.kl_mean, _KL)
    else:
        limit = EXACT_TOLERANCE * largest_logit
        _within(what, where, limit, measured.max_abs_logit_diff, "largest logit change")


def _rounds(program: Program) -> bool:
    """Return whether the program rounds activations or its cache to int8."""
    if program.kv is not None and program.kv.dtype == "int8":
        return True
    linears = (node for node in program.graph if node.op_type == "QuantLinear")
    return any(attributes_of(OPS["QuantLinear"], node)["act_group"] for node in linears)


def _within(what: str, where: str, limit: float, found: float, measure: str) -> None:
    """Raise if `found` is over the limit; what is not a number never passes."""
    if not found <= limit:
        raise PassFailed(
            f"{what} changed the answers: its {measure} is {found:.3g}, allowed is {limit:.3g}",
            where=where,
            hint="build with --no-check to keep the result all the same, or with --dump-ir to look at it",
        )
