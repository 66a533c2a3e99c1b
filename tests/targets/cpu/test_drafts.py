"""Drafts in machine code: what their programs say, in any chunks, beside a backbone that stays as it was."""

import json
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tests.heads_of_drafts import Arrays, eagle_heads, medusa_heads, saved
from tests.targets.cpu.chunks import answers
from tests.tiny_models import tiny_folder
from tokc.compiler import Build, Request, build, precision
from tokc.quality.running import draft_logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.executors.drafting import DraftRows
from tokc.targets.base import pass_list

HIDDEN, VOCAB, TOKENS, CONTEXT = 64, 96, 24, 64
SOME = np.arange(3, VOCAB, 2)
# name -> (heads, weights, cache, largest error as a share of the largest logit)
CASES: dict[str, tuple[Arrays, str, str, float]] = {
    "eagle": (eagle_heads(HIDDEN, (128, 64)), "f32", "f32", 1e-4),
    "eagle of its own vocabulary": (
        eagle_heads(HIDDEN, (128, 128), norm=True, bias=False, vocabulary=SOME), "int4", "int8", 0.02,
    ),
    "medusa": (medusa_heads(HIDDEN, 4, vocabulary=SOME), "int4", "f16", 0.02),
    "medusa of its own head": (medusa_heads(HIDDEN, 3, own=VOCAB), "f32", "f32", 1e-4),
    "medusa of two blocks": (medusa_heads(HIDDEN, 2, own=VOCAB, blocks=2), "int4", "f16", 0.02),
}  # fmt: skip
Made = tuple[Build, CpuExecutor, float]


def cases() -> Iterator[object]:
    """Yield every case; those of f32 are slow."""
    for name, (_, weights, _, _) in CASES.items():
        yield pytest.param(name, marks=[pytest.mark.slow] if weights == "f32" else [])


@pytest.fixture(scope="module", params=cases())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    tensors, weights, kv, tolerance = CASES[request.param]
    path = tmp_path_factory.mktemp("draft")
    folder = tiny_folder("smollm2" if "own" in request.param else "llama", path / "model", **SIZES)
    heads = saved(tensors, path / "heads.safetensors")
    passes = f"attach-draft{{heads={heads}}},{pass_list(precision(weights, kv))}"
    built = build(Request(folder, passes=passes, context=CONTEXT, check=False), path / "model.tokc")
    executor = CpuExecutor.open(Artifact.open(built.artifact), threads=2)
    yield built, executor, tolerance
    executor.close()


SIZES = {"hidden_size": HIDDEN, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return token ids [tokens] and features [tokens, hidden]."""
    rng = np.random.default_rng(7)
    return rng.integers(0, VOCAB, TOKENS), rng.normal(size=(TOKENS, HIDDEN)).astype(np.float32)


def drafted(executor: CpuExecutor, cuts: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Run one sequence through the draft in chunks; return the logits and features of every token."""
    assert executor.draft is not None
    ids, features = inputs()
    table = np.array([[1, 0]], np.int32)
    parts = []
    for start, end in pairwise(cuts):
        at = np.arange(end - start, dtype=np.int32)
        batch = Batch(ids[start:end].astype(np.int32), start + at, np.zeros_like(at), table, at)
        parts.append(copied(executor.draft.step(batch, features[start:end])))
    made = [part.features for part in parts if part.features is not None]
    return np.concatenate([part.logits for part in parts]), np.concatenate(made) if made else None


def copied(rows: DraftRows) -> DraftRows:
    """Return rows that outlive the next step."""
    return DraftRows(rows.logits.copy(), None if rows.features is None else rows.features.copy())


def test_a_lowered_draft_answers_as_its_program_does(made: Made) -> None:
    built, executor, tolerance = made
    draft = built.program.draft
    assert draft is not None
    ids, features = inputs()
    expected = draft_logits(draft.program, ids[None], features[None])[0]
    found, _ = drafted(executor, [0, TOKENS])
    assert found.shape == expected.shape
    assert found.shape[-1] == draft.logits
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_chunks_do_not_change_a_bit_of_a_draft(made: Made) -> None:
    _, executor, _ = made
    whole, features = drafted(executor, [0, TOKENS])
    apart, again = drafted(executor, [0, 1, 2, 9, 10, TOKENS])
    np.testing.assert_array_equal(apart, whole)
    if features is not None and again is not None:
        np.testing.assert_array_equal(again, features)


def test_rows_of_a_batch_are_those_of_a_sequence_alone(made: Made) -> None:
    _, executor, _ = made
    assert executor.draft is not None
    ids, features = inputs()
    whole, _ = drafted(executor, [0, TOKENS])
    at = np.arange(TOKENS, dtype=np.int32)
    half = TOKENS // 2
    batch = Batch(
        np.concatenate([ids[:half], ids]).astype(np.int32),
        np.concatenate([at[:half], at]),
        np.repeat(np.array([0, 1], np.int32), [half, TOKENS]),
        np.array([[0, 0], [2, 1]], np.int32),
        np.array([half - 1, half + TOKENS - 1], np.int32),
    )
    rows = executor.draft.step(batch, np.concatenate([features[:half], features]))
    np.testing.assert_array_equal(rows.logits, whole[[half - 1, TOKENS - 1]])


def test_a_step_of_the_draft_leaves_the_backbones_answers_as_they_were(made: Made) -> None:
    _, executor, _ = made
    ids = np.arange(1, TOKENS + 1)
    before = answers(executor, ids, TOKENS)
    drafted(executor, [0, TOKENS])
    np.testing.assert_array_equal(answers(executor, ids, 5), before)


def test_what_draft_and_backbone_share_is_stored_once(made: Made) -> None:
    built, executor, _ = made
    artifact = Artifact.open(built.artifact)
    own = set(artifact.resident_tensors("draft/model.safetensors"))
    assert not own & set(artifact.tensors())
    plan = json.loads((built.artifact / "draft" / "plan.json").read_text())
    read = {buffer["name"] for buffer in plan["buffers"] if buffer["space"] == "weights"}
    assert read <= own | set(artifact.tensors())
    assert plan["kernels"] == executor.plan["kernels"]
    draft, info = built.program.draft, artifact.manifest.draft
    assert draft is not None
    assert info is not None
    assert (info.kind, info.vocab, info.heads) == (draft.kind, draft.logits, draft.heads)
    if draft.vocabulary is not None:
        np.testing.assert_array_equal(executor.draft.vocabulary, SOME)  # type: ignore[union-attr]


def test_the_manifest_names_every_file_of_the_draft(made: Made) -> None:
    built, _, _ = made
    named = set(Artifact.open(built.artifact).manifest.files)
    wanted = {"plan.json", "plan.txt", "program.onnx", "model.safetensors"}
    assert {f"draft/{name}" for name in wanted} <= named
