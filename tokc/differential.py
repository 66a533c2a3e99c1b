"""The differential check: the program before and after each pass, run over the same tokens and compared."""

import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from tokc.errors import PassFailed
from tokc.ir.ops import OPS, attributes_of
from tokc.ir.program import Program
from tokc.passes.base import Pass
from tokc.pipeline import Step, pass_text
from tokc.quality.compiled import ArtifactRun
from tokc.quality.divergence import F32, Divergence, logits
from tokc.quality.perplexity import I64, Comparison, compare
from tokc.quality.running import fixed_ids
from tokc.quality.text import evaluation_text

PROMPT_SEQUENCES, PROMPT_TOKENS = 2, 128  # 256 tokens take onnxruntime half a second a pass of SmolLM2
MAX_ELEMENTS = 1 << 29  # weights that a check may hold in f32
CHARACTERS_A_TOKEN = 12  # more than any tokenizer makes of English on average
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

    Two sequences of the evaluation text are prefilled, and their last tokens decoded over the cache; a batch
    program and a ragged one are fed the same tokens. Each stage runs once: what one pass made is what the
    next one starts from. An exact pass may differ by `EXACT_TOLERANCE` of the largest logit, a lossy one by
    the mean KL that it states.
    """

    def __init__(self, *, max_elements: int = MAX_ELEMENTS) -> None:
        """Check programs of at most `max_elements` weights, which onnxruntime holds in f32."""
        self.max_elements = max_elements
        self.measured: dict[int, Comparison] = {}
        self.seconds: dict[int, float] = {}
        self.note: str | None = None
        self._first: F32 | None = None
        self._last: F32 | None = None
        self._ids: I64 | None = None

    def after_pass(self, step: Step) -> None:
        """Compare the answers before and after the step.

        Raises:
            PassFailed: they differ by more than the pass allows.
        """
        if not step.changed or not self._fits(step.before):
            return
        start_s = time.perf_counter()
        ids, last = self._begin(step.before)
        answers = _answers(step.after, ids)
        measured = compare(last, answers, ids)
        hold(step, measured, float(np.abs(last).max()), step.before)
        self._last = answers
        self.measured[step.number] = measured
        self.seconds[step.number] = time.perf_counter() - start_s

    def after_lowering(self, artifact: Path, program: Program) -> Comparison | None:
        """Run the artifact on this machine and compare it with `program`, which ran last; None if too large.

        Raises:
            PassFailed: they differ by more than another order of sums explains.
        """
        if not self._fits(program):
            return None
        ids, last = self._begin(program)
        measured = compare(last, lowered_answers(artifact, ids), ids)
        limit = ROUNDED_MAX_KL if rounds(program) else LOWERED_MAX_KL
        within("lowering", str(artifact), limit, measured.kl_mean)
        return measured

    def final(self) -> Comparison | None:
        """Return how far the last program's answers are from the first one's."""
        if self._first is None or self._last is None or self._ids is None:
            return None
        return compare(self._first, self._last, self._ids)

    def _begin(self, program: Program) -> tuple[I64, F32]:
        """Return the tokens and the answers of the program that ran last; the first time `program` runs."""
        if self._ids is None or self._last is None:
            self._ids = prompt(program)
            self._first = self._last = _answers(program, self._ids)
        return self._ids, self._last

    def _fits(self, program: Program) -> bool:
        elements = weights_of(program)
        if elements <= self.max_elements:
            return True
        self.note = (
            f"not compared: {elements} weights are more than the {self.max_elements} that a check may hold"
        )
        return False


def weights_of(program: Program) -> int:
    """Return how many weights a program has."""
    tensors = (value.const_value for value in program.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None)


def lowered_answers(artifact: Path, token_ids: I64) -> F32:
    """Run an artifact's kernels over token ids [sequences, tokens]: a prefill, then a step over the cache."""
    with ArtifactRun.open(artifact, verify=False) as run:
        return run.logits(token_ids, cached_from=token_ids.shape[1] - 1)


def _answers(program: Program, token_ids: I64) -> F32:
    return logits(program, token_ids, cached_from=token_ids.shape[1] - 1)


def prompt(program: Program) -> I64:
    """Return token ids [sequences, tokens] of two places of the evaluation text.

    Where there is no tokenizer, or it makes other tokens than the program reads, they are fixed ids.
    """
    length = min(PROMPT_TOKENS, program.config.context)
    found = _read(program, length) if program.assets.tokenizer_json is not None else []
    if all(len(ids) == length and max(ids) < program.config.vocab for ids in found) and found:
        return np.array(found)
    return fixed_ids(program, PROMPT_SEQUENCES, length)


def _read(program: Program, length: int) -> list[list[int]]:
    """Return the tokens of evenly spread places of the evaluation text."""
    tokenizer, text = Tokenizer.from_str(program.assets.tokenizer_json or ""), evaluation_text()
    starts = [len(text) * index // PROMPT_SEQUENCES for index in range(PROMPT_SEQUENCES)]
    places = [text[start : start + length * CHARACTERS_A_TOKEN] for start in starts]
    return [tokenizer.encode(place, add_special_tokens=False).ids[:length] for place in places]


def max_kl_of(pass_: Pass) -> float:
    """Return the mean KL that a pass may cost, 0 if it is held to the tolerance of exact passes."""
    if pass_.exact:
        return 0.0
    return pass_.max_kl if isinstance(pass_, Lossy) else LOSSY_MAX_KL


def hold(step: Step, measured: Divergence, largest_logit: float, before: Program) -> None:
    """Hold a pass to what it allows; `before` is what it changed, `largest_logit` the largest that it said.

    Raises: PassFailed if the answers moved by more.
    """
    what, where = f"pass {step.number} of {step.total}, {step.pass_.name},", pass_text(step.pass_)
    max_kl = max_kl_of(step.pass_) or (ROUNDED_MAX_KL if rounds(before) else 0.0)
    if max_kl:
        within(what, where, max_kl, measured.kl_mean)
    else:
        limit = EXACT_TOLERANCE * largest_logit
        within(what, where, limit, measured.max_abs_logit_diff, "largest logit change")


def rounds(program: Program) -> bool:
    """Return whether the program rounds activations or its cache to integers."""
    if program.kv is not None and program.kv.scaled:
        return True
    linears = (node for node in program.graph if node.op_type == "QuantLinear")
    return any(attributes_of(OPS["QuantLinear"], node)["act_group"] for node in linears)


def within(what: str, where: str, limit: float, found: float, measure: str = _KL) -> None:
    """Hold a figure to its limit; what is not a number never passes.

    Raises: PassFailed if it is over.
    """
    if not found <= limit:
        raise PassFailed(
            f"{what} changed the answers: its {measure} is {found:.3g}, allowed is {limit:.3g}",
            where=where,
            hint="build with --no-check to keep the result all the same, or with --dump-ir to look at it",
        )
