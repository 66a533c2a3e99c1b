"""Heads become drafts that compute what the papers' code computes; heads of other models are refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.heads_of_drafts import Arrays, eagle_heads, eagle_logits, medusa_heads, medusa_logits, saved
from tests.passes.graphs import decoder
from tokc.errors import ImportRefused
from tokc.importers.drafts import draft_of
from tokc.importers.heads import load_heads, require_fit
from tokc.ir.program import Draft, Program
from tokc.ir.verify import verify
from tokc.pipeline import Pipeline
from tokc.quality.running import draft_logits
from tokc.targets.base import Precision, pass_list

HIDDEN, DIM, VOCAB, TOKENS = 32, 8, 40, 11
SOME = np.array([0, 3, 4, 5, 9, 17, 22, 31, 38, 39])
QUERIES = (32, 16)
EAGLES = {
    "published": {},
    "of its own vocabulary": {"vocabulary": SOME},
    "with a norm and no bias": {"norm": True, "bias": False},
}
MEDUSAS = {
    "published": {"own": VOCAB},
    "of the backbone's head": {},
    "of its own vocabulary": {"vocabulary": SOME},
    "of two blocks": {"own": VOCAB, "blocks": 2},
    "of two blocks and the backbone's head": {"vocabulary": SOME, "blocks": 2},
}


def table(program: Program, name: str) -> np.ndarray:
    """Return a weight of the backbone."""
    tensor = program.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy())


def attached(tensors: Arrays, path: Path, backbone: Program) -> tuple[Draft, Program]:
    """Return the draft as imported, and as the passes of the CPU leave it in f32."""
    heads = load_heads(saved(tensors, path / "heads.safetensors"))
    require_fit(heads, backbone)
    draft = draft_of(heads, backbone)
    verify(draft.program)
    lowered = Pipeline.parse(pass_list(Precision("f32", kv="f32"))).run(draft.program)
    verify(lowered)
    return draft, lowered


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return token ids [1, tokens] and features [1, tokens, hidden]."""
    rng = np.random.default_rng(1)
    return rng.integers(0, VOCAB, (1, TOKENS)), rng.normal(size=(1, TOKENS, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("family", ["llama", "smollm2"])
@pytest.mark.parametrize("kind", EAGLES)
def test_an_eagle_computes_what_the_papers_code_does(family: str, kind: str, tmp_path: Path) -> None:
    backbone = decoder(family)
    tensors = eagle_heads(HIDDEN, QUERIES, **EAGLES[kind])
    embedding = table(backbone, "model.embed_tokens.weight")
    head = embedding if family == "smollm2" else table(backbone, "lm_head.weight")
    ids, features = inputs()
    expected, _ = eagle_logits(tensors, embedding, head, ids[0], features[0], dim=DIM, epsilon=1e-5)
    draft, lowered = attached(tensors, tmp_path, backbone)
    for program in (draft.program, lowered):
        for cached_from in (None, 6):
            found = draft_logits(program, ids, features, cached_from=cached_from)[0]
            assert found.shape == (TOKENS, draft.logits)
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", MEDUSAS)
def test_medusas_heads_compute_what_the_papers_code_does(kind: str, tmp_path: Path) -> None:
    backbone = decoder("llama")
    tensors = medusa_heads(HIDDEN, 3, **MEDUSAS[kind])
    ids, features = inputs()
    expected = medusa_logits(tensors, table(backbone, "lm_head.weight"), features[0])
    draft, lowered = attached(tensors, tmp_path, backbone)
    assert draft.heads == 3
    for program in (draft.program, lowered):
        found = draft_logits(program, ids, features)[0]
        assert found.shape == (TOKENS, 3, draft.logits)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_heads_through_the_backbones_head_read_it_once(tmp_path: Path) -> None:
    _, lowered = attached(medusa_heads(HIDDEN, 4), tmp_path, decoder("llama"))
    ops = [node.op_type for node in lowered.graph]
    assert ops == ["Gather", "Linear", "ResidualSilu", "Linear"]


def test_a_draft_computes_only_the_rows_that_are_asked_for_behind_its_attention(tmp_path: Path) -> None:
    _, lowered = attached(eagle_heads(HIDDEN, QUERIES), tmp_path, decoder("llama"))
    gathered = {str(node.outputs[0].name) for node in lowered.graph if node.op_type == "Gather"}
    assert len([name for name in gathered if name.endswith(".rows")]) == 2
    shapes = {str(value.name): value.shape for value in lowered.graph.outputs}
    assert shapes["features.out"] == ["rows", HIDDEN]


def test_what_published_files_repeat_of_the_backbone_is_passed_over(tmp_path: Path) -> None:
    tensors = eagle_heads(HIDDEN, QUERIES) | {
        "embed_tokens.weight": np.zeros((VOCAB, HIDDEN), np.float32),
        "layers.0.self_attn.rotary_emb.inv_freq": np.zeros(DIM // 2, np.float32),
    }
    draft, _ = attached(tensors, tmp_path, decoder("llama"))
    assert draft.kind == "eagle"


@pytest.mark.parametrize(
    ("tensors", "metadata", "problem"),
    [
        (eagle_heads(64, (64, 64)), {}, "another backbone: the hidden size is 64 there, 32 here"),
        (medusa_heads(64, 2), {}, "another backbone: the hidden size is 64 there, 32 here"),
        (medusa_heads(32, 2, own=50), {}, "another backbone: the vocabulary has 50 tokens there, 40 here"),
        (medusa_heads(32, 2), {"vocab": "41"}, "the vocabulary has 41 tokens there, 40 here"),
        (eagle_heads(32, QUERIES, vocabulary=np.array([1, 40])), {}, "they draft token 40"),
    ],
)
def test_heads_of_another_backbone_are_refused(
    tensors: Arrays, metadata: dict[str, str], problem: str, tmp_path: Path
) -> None:
    heads = load_heads(saved(tensors, tmp_path / "heads.safetensors", **metadata))
    with pytest.raises(ImportRefused, match=problem):
        require_fit(heads, decoder("llama"))


def test_heads_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    backbone = decoder("llama")
    known = backbone.replace(assets=type(backbone.assets)(tokenizer_json='{"model": {}}'))
    heads = load_heads(saved(eagle_heads(32, QUERIES), tmp_path / "h.safetensors", tokenizer_sha256="12ab"))
    with pytest.raises(ImportRefused, match="the tokenizer is 12ab there"):
        require_fit(heads, known)


def test_files_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="there is no file or folder"):
        load_heads(tmp_path / "missing.safetensors")
    with pytest.raises(ImportRefused, match=r"0 \.safetensors files, not one"):
        load_heads(tmp_path)
    other = saved({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ImportRefused, match=r"neither 'fc.weight' .* nor '0.0.linear.weight'"):
        load_heads(other)
    odd = medusa_heads(HIDDEN, 1, own=VOCAB) | {"0.2.weight": np.zeros((VOCAB, HIDDEN), np.float32)}
    with pytest.raises(ImportRefused, match=r"'0\.2\.weight' has no place in Medusa-1's heads"):
        load_heads(saved(odd, tmp_path / "odd.safetensors"))


def test_a_tensor_that_is_missing_or_has_no_place_is_named(tmp_path: Path) -> None:
    backbone = decoder("llama")
    tensors = eagle_heads(HIDDEN, QUERIES)
    more = {**tensors, "layers.1.mlp.up_proj.weight": tensors["layers.0.mlp.up_proj.weight"]}
    with pytest.raises(ImportRefused, match=r"'layers.1.mlp.up_proj.weight' has no place in eagle heads"):
        draft_of(load_heads(saved(more, tmp_path / "more.safetensors")), backbone)
    del tensors["layers.0.self_attn.v_proj.weight"]
    with pytest.raises(ImportRefused, match=r"v_proj.weight' is missing"):
        draft_of(load_heads(saved(tensors, tmp_path / "less.safetensors")), backbone)
