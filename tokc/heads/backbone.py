"""What a head needs of the artifact that it will draft for: sizes, dequantized rows, features of a text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokc.errors import TokcError
from tokc.exporters.artifact import artifact_model
from tokc.importers.architecture import Architecture, Scales, architecture_of
from tokc.importers.checkpoint import Dense, Weight, dequantized
from tokc.importers.decoder import EMBEDDING, HEAD, HEAD_BIAS
from tokc.importers.families import family_of
from tokc.ir.program import ModelConfig
from tokc.runtime.artifact import WEIGHTS, Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

F32 = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Backbone:
    """A served model: embedding and head f32[vocab, hidden] as its kernels read them, and what names it.

    `weights_sha256` stands for the packed weights, which do not change when a draft is added; `cos` and
    `sin` are the angles [context, head_dim / 2] of its full layers.
    """

    name: str
    config: ModelConfig
    embedding: F32
    head: F32
    cos: F32
    sin: F32
    tokenizer_sha256: str
    weights_sha256: str
    pipeline: str


def backbone_of(path: Path) -> Backbone:
    """Read an artifact for CPUs.

    Raises: TokcError if it is for another target or its family has what heads do not heed.
    """
    artifact, model = Artifact.open(path), artifact_model(path)
    source = model.assets.source_config
    architecture = architecture_of(family_of(source, str(path)), source, model.config.context, str(path))
    _refuse(architecture, HEAD_BIAS in model.weights, path)
    cos, sin = architecture.rope.tables(model.config.head_dim, model.config.context)
    embedding = _plain(model.weights[EMBEDDING])
    tokenizer = artifact.read_text("tokenizer.json") or ""
    return Backbone(
        name=artifact.manifest.name,
        config=model.config,
        embedding=embedding,
        head=_plain(model.weights[HEAD]) if HEAD in model.weights else embedding,
        cos=cos,
        sin=sin,
        tokenizer_sha256=hashlib.sha256(tokenizer.encode()).hexdigest(),
        weights_sha256=artifact.manifest.files[WEIGHTS].sha256,
        pipeline=artifact.manifest.pipeline,
    )


def _plain(weight: Weight) -> F32:
    value = weight.tensor.numpy() if isinstance(weight, Dense) else dequantized(weight)
    return np.ascontiguousarray(value, np.float32)


def _refuse(architecture: Architecture, has_bias: bool, path: Path) -> None:  # noqa: FBT001
    scales = architecture.scales
    plain = Scales(residual=scales.residual, score_cap=scales.score_cap)
    one_rope = all(architecture.rotated) and architecture.local_rope == architecture.rope
    if scales == plain and one_rope and not has_bias:
        return
    raise TokcError(
        f"heads cannot be trained for family '{architecture.family.name}' yet: it scales embeddings or"
        " logits, or has other positions than one rotary embedding",
        where=str(path),
        hint="n-gram speculation needs no heads: --speculate ngram",
    )


class FeatureRun:
    """Runs texts through an artifact that exposes its features, in prefill chunks."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the artifact.

        Raises: ArtifactRefused if this machine cannot run it; TokcError if it exposes no features.
        """
        self._executor = CpuExecutor(Artifact.open(path), threads=threads)
        if self._executor.features is None:
            pipeline = Artifact.open(path, verify=False).manifest.pipeline
            self._executor.close()
            raise TokcError(
                "the artifact does not give out its features, which heads read",
                where=str(path),
                hint=f"give the model instead, or build with --passes 'expose-features,{pipeline}'",
            )

    def features(self, tokens: Int32s) -> F32:
        """Return the hidden states behind the last norm, f32[n, hidden], of token ids i32[n]."""
        executor = self._executor
        chunks = []
        blocks = -(-len(tokens) // executor.page_size)
        table = np.arange(blocks, dtype=np.int32)[None]
        for start in range(0, len(tokens), executor.max_tokens):
            ids = tokens[start : start + executor.max_tokens]
            count = len(ids)
            executor.step(
                Batch(
                    input_ids=ids,
                    positions=np.arange(start, start + count, dtype=np.int32),
                    sequences=np.zeros(count, np.int32),
                    block_tables=table,
                    logit_rows=np.array([count - 1], np.int32),
                )
            )
            assert executor.features is not None, "checked when it was opened"
            chunks.append(executor.features.copy())
        return np.concatenate(chunks)

    def close(self) -> None:
        """Let go of memory and threads."""
        self._executor.close()
