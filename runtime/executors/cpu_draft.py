"""Runs the draft of an artifact on the threads of its backbone, over a cache with the same pages."""

import ctypes
import json

import numpy as np
import numpy.typing as npt

from tokc.errors import RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import LOGITS, CpuExecutor
from tokc.runtime.executors.drafting import DraftRows
from tokc.runtime.manifest import DRAFT

WEIGHTS, VOCABULARY = f"{DRAFT}/model.safetensors", "draft.vocabulary"
FEATURES, FEATURES_OUT = "features", "a.features.out"


class CpuDraft(CpuExecutor):
    """Holds plan, weights and cache of a draft; the library and its threads are the backbone's."""

    def __init__(
        self, backbone: CpuExecutor, artifact: Artifact, library: ctypes.CDLL, pool: int | None
    ) -> None:
        """Load the weights that the draft alone has and make its cache.

        Raises: ArtifactRefused if a file cannot be read.
        """
        info = artifact.manifest.draft
        assert info is not None, "the artifact has a draft"
        self.kind, self.heads = info.kind, info.heads
        self.vocab_size, self._hidden = info.vocab, artifact.manifest.model.hidden
        plan = json.loads((artifact.path / DRAFT / "plan.json").read_text())
        self._limits = plan["limits"]
        self.threads, self.max_tokens = backbone.threads, backbone.max_tokens
        self.page_size, self.num_pages = backbone.page_size, backbone.num_pages
        self._library, self._pool = library, pool
        own = artifact.resident_tensors(WEIGHTS)
        ids = own.get(VOCABULARY)
        self.vocabulary = None if ids is None else ids.astype(np.int32, copy=False)
        self._prepare(plan, {**backbone.weights, **own})
        self._given = self._inputs[FEATURES].reshape(-1, self._hidden)
        self._parts = [self._arrays[name] for name in sorted(self._arrays) if name.startswith(LOGITS)]
        self._next = self._arrays.get(FEATURES_OUT)

    def step(self, batch: Batch, features: npt.NDArray[np.float32]) -> DraftRows:  # type: ignore[override]
        """Run one step over features f32[tokens, hidden] and the tokens that follow them.

        Raises: RequestRefused if the batch is larger than the artifact's limits.
        """
        rows = len(batch.logit_rows)
        self._load(batch)
        self._rows[2] = rows * self.heads
        self._given[: len(features)] = features
        self._library.tokc_step(*self._step_arguments, None)
        made = None if self._next is None else self._next[:rows, : self._hidden]
        return DraftRows(self._taken(rows), made)

    def close(self) -> None:
        """Let go of the cache; the threads are the backbone's."""
        self._pool, self._arrays = None, {}

    def _taken(self, rows: int) -> npt.NDArray[np.float32]:
        """Return the logits of the step."""
        if len(self._parts) > 1:  # heads with projections of their own
            return np.stack([part[:rows, : self.vocab_size] for part in self._parts], axis=1)
        whole: npt.NDArray[np.float32] = self._parts[0][: rows * self.heads, : self.vocab_size]
        return whole if self.kind == "eagle" else whole.reshape(rows, self.heads, -1)

    def _load(self, batch: Batch) -> None:
        if "input_ids" in self._inputs:
            super()._load(batch)
            return
        tokens, rows = len(batch.input_ids), len(batch.logit_rows)
        if tokens > self.max_tokens or rows > self._limits["rows"]:
            raise RequestRefused(f"a draft of {tokens} tokens and {rows} rows exceeds the artifact's limits")
        self._inputs["logit_rows"][:rows] = batch.logit_rows
        self._rows[:2] = (tokens, rows)
