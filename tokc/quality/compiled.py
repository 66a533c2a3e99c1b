"""Runs an artifact's compiled kernels over windows of tokens; needs the runtime alone."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.table import executor_for

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class ArtifactRun:
    """Hold an artifact ready to answer, window after window; each starts with an empty cache."""

    def __init__(self, artifact: Artifact, *, threads: int | None = None) -> None:
        """Load the weights.

        Raises: ArtifactRefused if this machine cannot run the artifact.
        """
        self._executor = executor_for(artifact, threads=threads)
        self._rows = artifact.manifest.limits.max_rows
        self.vocab_size = self._executor.vocab_size

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None, verify: bool = True) -> Self:
        """Open the artifact at `path`, by default after checking the hash of every file.

        Raises: ArtifactRefused if it is damaged or not for this machine.
        """
        return cls(Artifact.open(path, verify=verify), threads=threads)

    def logits(self, ids: I64, *, cached_from: int) -> F32:
        """Return logits [sequences, tokens, vocab] of token ids [sequences, tokens], all sequences at once.

        Tokens before `cached_from` are read in steps of as many logits as the artifact gives at once, those
        from it on one at a time over the cache of the others, as decoding does.
        """
        sequences, tokens = ids.shape
        width = max(1, self._rows // sequences)
        out = np.empty((sequences, tokens, self.vocab_size), np.float32)
        for start, end in _steps(cached_from, tokens, width):
            rows = np.arange(sequences * (end - start))
            out[:, start:end] = self._step(ids, start, end, rows).reshape(sequences, end - start, -1)
        return out

    def answers(self, ids: I64, first: int) -> F32:
        """Return logits [tokens - first, vocab] of the tokens from `first` on of one window, ids [tokens]."""
        tokens = len(ids)
        out = np.empty((tokens - first, self.vocab_size), np.float32)
        for start, end in _steps(first, first, self._executor.max_tokens):
            self._step(ids[None], start, end, np.array([end - start - 1]))
        width = min(self._rows, self._executor.max_tokens)
        for start, end in _steps(tokens - first, tokens - first, width):
            rows = np.arange(end - start)
            out[start:end] = self._step(ids[None], first + start, first + end, rows)
        return out

    def close(self) -> None:
        """Let go of memory and threads."""
        self._executor.close()

    def _step(self, ids: I64, start: int, end: int, rows: npt.NDArray[np.int64]) -> F32:
        sequences, tokens = ids.shape
        blocks = -(-tokens // self._executor.page_size)
        tables = np.arange(sequences * blocks, dtype=np.int32)[::-1].reshape(sequences, blocks)
        batch = Batch(
            input_ids=ids[:, start:end].reshape(-1).astype(np.int32),
            positions=np.tile(np.arange(start, end, dtype=np.int32), sequences),
            sequences=np.repeat(np.arange(sequences, dtype=np.int32), end - start),
            block_tables=np.ascontiguousarray(tables),
            logit_rows=rows.astype(np.int32),
        )
        return np.asarray(self._executor.step(batch))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of memory and threads."""
        self.close()


def _steps(cached_from: int, tokens: int, width: int) -> list[tuple[int, int]]:
    """Return from where to where each step reads: `width` tokens up to `cached_from`, then one by one."""
    wide = [(start, min(start + width, cached_from)) for start in range(0, cached_from, width)]
    return [*wide, *((start, start + 1) for start in range(cached_from, tokens))]
