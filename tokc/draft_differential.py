"""The differential check of a draft: its answers before and after each pass, from the same features."""

from pathlib import Path

import numpy as np

from tokc.differential import (
    LOWERED_MAX_KL,
    MAX_ELEMENTS,
    PROMPT_SEQUENCES,
    ROUNDED_MAX_KL,
    hold,
    prompt,
    rounds,
    weights_of,
    within,
)
from tokc.ir.execute import execute
from tokc.ir.head import FEATURES
from tokc.ir.program import Program
from tokc.pipeline import Step
from tokc.quality.divergence import F32, Divergence, divergence
from tokc.quality.perplexity import I64
from tokc.quality.running import draft_logits, feeds_of
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

TOKENS = 32  # of each sequence; logits of several heads of a large vocabulary fill the memory


class DraftCheck:
    """Run the draft before and after each pass, over the features that its backbone had when it was attached.

    Features stay the same from then on, so that what is compared is what passes do to the draft alone. An
    exact pass may change as much as it may of a backbone, a lossy one by the mean KL that it states.
    """

    def __init__(self) -> None:
        """Check nothing until a draft is attached."""
        self.measured: dict[int, Divergence] = {}
        self._ids: I64 = np.zeros((0, 0), np.int64)
        self._features: F32 = np.zeros((0, 0, 0), np.float32)
        self._last: F32 | None = None

    def after_pass(self, step: Step) -> None:
        """Compare the answers before and after the step.

        Raises: PassFailed if they differ by more than the pass allows.
        """
        before, after = step.before.draft, step.after.draft
        if after is None:
            return
        if before is None:
            if weights_of(step.after) > MAX_ELEMENTS:
                return
            self._begin(step.after)
            self._last = self._answers(after.program)
            return
        if after.program is before.program or self._last is None:
            return
        answers = self._answers(after.program)
        measured = divergence(self._last, answers)
        hold(step, measured, float(np.abs(self._last).max()), before.program)
        self._last = answers
        self.measured[step.number] = measured

    def after_lowering(self, artifact: Path, program: Program) -> Divergence | None:
        """Run the artifact's draft on this machine and compare it with the last one; None without one.

        Raises: PassFailed if they differ by more than another order of sums explains.
        """
        if program.draft is None or self._last is None:
            return None
        measured = divergence(self._last, self._lowered(artifact))
        limit = ROUNDED_MAX_KL if rounds(program.draft.program) else LOWERED_MAX_KL
        within("lowering the draft", str(artifact), limit, measured.kl_mean)
        return measured

    def _begin(self, backbone: Program) -> None:
        """Take the features of a prompt, each with the token behind it."""
        ids = prompt(backbone)[:, : TOKENS + 1]
        self._ids = ids[:, 1:]
        self._features = np.asarray(execute(backbone, feeds_of(backbone, ids))[FEATURES], np.float32)[:, :-1]

    def _answers(self, draft: Program) -> F32:
        return draft_logits(draft, self._ids, self._features, cached_from=self._ids.shape[1] - 1)

    def _lowered(self, artifact: Path) -> F32:
        """Return what the kernels answer, the last tokens over the cache of those before."""
        executor = CpuExecutor.open(Artifact.open(artifact, verify=False))
        try:
            assert executor.draft is not None, "the artifact has a draft"
            sequences, tokens = self._ids.shape
            parts = []
            for start, end in ((0, tokens - 1), (tokens - 1, tokens)):
                batch = _batch(self._ids[:, start:end], start, executor.page_size)
                given = self._features[:, start:end].reshape(sequences * (end - start), -1)
                logits = executor.draft.step(batch, given).logits
                parts.append(logits.reshape(sequences, end - start, *logits.shape[1:]).copy())
            return np.concatenate(parts, axis=1)
        finally:
            executor.close()


def _batch(ids: I64, start: int, page: int) -> Batch:
    sequences, tokens = ids.shape
    assert sequences == PROMPT_SEQUENCES, "prompts are of so many sequences"
    blocks = -(-(start + tokens) // page)
    widest = -(-TOKENS // page)
    tables = np.arange(sequences * widest, dtype=np.int32)[::-1].reshape(sequences, widest)[:, :blocks]
    return Batch(
        input_ids=ids.reshape(-1).astype(np.int32),
        positions=np.tile(np.arange(start, start + tokens, dtype=np.int32), sequences),
        sequences=np.repeat(np.arange(sequences, dtype=np.int32), tokens),
        block_tables=np.ascontiguousarray(tables),
        logit_rows=np.arange(ids.size, dtype=np.int32),
    )
