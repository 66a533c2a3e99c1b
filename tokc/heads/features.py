"""The features of a distilled text, in f16 beside it: one row a token, a file a shard.

f16 keeps three digits, as the hidden states that the draft reads in the runtime have from their int8
products; at 2 bytes an element a million tokens of a hidden size of 576 take 1.2 GB.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import file_written_aside
from tokc.heads.backbone import FeatureRun
from tokc.heads.distillation import Passage

Progress = Callable[[str], None]
F16 = npt.NDArray[np.float16]
SHARD_PASSAGES = 128


@dataclass(frozen=True)
class Example:
    """A passage and its features f16[n, hidden]; the file is read when they are used."""

    passage: Passage
    features: F16


class FeatureStore:
    """Features of passages in a folder, computed as far as they are not there yet."""

    def __init__(self, folder: Path, run: Callable[[], FeatureRun]) -> None:
        """Keep features in `folder`; `run` opens the artifact if any are missing."""
        self._folder, self._open = folder, run
        self._run: FeatureRun | None = None

    def examples(
        self, name: str, passages: Items[Passage], progress: Progress = lambda _: None
    ) -> list[Example]:
        """Return each passage with its features."""
        shards = [
            passages[first : first + SHARD_PASSAGES] for first in range(0, len(passages), SHARD_PASSAGES)
        ]
        found: list[Example] = []
        for index, shard in enumerate(shards):
            found += self._shard(self._folder / f"{name}-{index:05}.npy", shard)
            progress(f"features: {len(found):,} of {len(passages):,} texts")
        if self._run is not None:
            self._run.close()
            self._run = None
        return found

    def _shard(self, path: Path, passages: Items[Passage]) -> Iterator[Example]:
        if not path.exists():
            self._compute(path, passages)
        rows = np.load(path, mmap_mode="r")
        ends = np.cumsum([len(passage.tokens) for passage in passages])
        for passage, end in zip(passages, ends, strict=True):
            yield Example(passage, rows[end - len(passage.tokens) : end])

    def _compute(self, path: Path, passages: Items[Passage]) -> None:
        if self._run is None:
            self._run = self._open()
        run = self._run
        with file_written_aside(path, "cannot keep features", str(path)) as aside, aside.open("wb") as file:
            np.save(file, np.concatenate([run.features(one.tokens) for one in passages]).astype(np.float16))
