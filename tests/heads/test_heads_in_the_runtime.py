"""Heads of a training, built into an artifact: as many of their tokens hold there as training reported."""

from pathlib import Path

import numpy as np
import pytest

from tests.reading_model import reading_folder
from tokc.compiler import Request as Build
from tokc.compiler import build
from tokc.heads.acceptance import Acceptance, chain, total
from tokc.heads.distillation import Passage, read_passages
from tokc.heads.train import Request, train_heads
from tokc.heads.training import EVALUATED
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.targets.base import Precision, pass_list

CONTEXT, DEPTH = 128, EVALUATED["eagle"]
pytestmark = pytest.mark.usefixtures("quick")


def step_of(executor: CpuExecutor, ids: np.ndarray, start: int) -> Batch:
    at = np.arange(len(ids), dtype=np.int32)
    table = np.arange(-(-CONTEXT // executor.page_size), dtype=np.int32)[None]
    return Batch(ids.astype(np.int32), start + at, np.zeros_like(at), table, at[-1:])


def drafted(executor: CpuExecutor, passage: Passage) -> Acceptance:
    """Draft behind each token of an answer as the runtime does: real entries first, then the draft's own."""
    ids, draft = passage.tokens, executor.draft
    assert draft is not None
    assert draft.vocabulary is not None
    executor.step(step_of(executor, ids, 0))
    assert executor.features is not None
    features = executor.features.copy()
    hits = np.zeros((DEPTH, len(ids) - passage.answer), bool)
    start = 0
    for known in range(passage.answer, len(ids) - 1):
        made = draft.step(step_of(executor, ids[start + 1 : known + 1], start), features[start:known])
        for step in range(min(DEPTH, len(ids) - 1 - known)):
            token = int(draft.vocabulary[int(made.logits[0].argmax())])
            hits[step, known - passage.answer + step] = token == ids[known + 1 + step]
            assert made.features is not None
            made = draft.step(step_of(executor, np.array([token]), known + step), made.features.copy())
        start = known
    return chain(hits)


def test_heads_hold_in_the_artifact_as_often_as_training_reported(tmp_path: Path) -> None:
    model = reading_folder(tmp_path / "tiny", max_position_embeddings=CONTEXT, num_hidden_layers=1)
    usual = pass_list(Precision("f32", kv="f32"))
    exposing = Build(model, passes=f"expose-features,{usual}", check=False)
    report = train_heads(
        Request(
            build(exposing, tmp_path / "exposing.tokc").artifact,
            "eagle",
            tmp_path / "eagle.safetensors",
            tmp_path / "work",
            distilled=800,
            draft_vocabulary=40,
            epochs=1,
            answer_tokens=12,
            held_out_prompts=2,
            threads=1,
        )
    )
    drafting = Build(model, passes=usual, speculate="eagle", heads=report.out, check=False)
    made = build(drafting, tmp_path / "drafting.tokc")
    executor = CpuExecutor.open(Artifact.open(made.artifact), threads=1)
    held_out = read_passages(tmp_path / "work" / "held-out-00000.npz")
    found = {str(at): drafted(executor, passage) for at, passage in enumerate(held_out)}
    executor.close()
    assert total(found).mean_length == pytest.approx(report.acceptance.mean_length, rel=0.02)
    assert 1.2 < report.acceptance.mean_length < 1 + DEPTH
