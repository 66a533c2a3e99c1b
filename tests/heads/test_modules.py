"""The torch modules against the papers' code in numpy, and against the programs that the runtime runs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.heads_of_drafts import eagle_heads, eagle_logits, medusa_heads, medusa_logits, saved
from tests.passes.graphs import decoder
from tokc.heads.backbone import Backbone
from tokc.heads.distillation import Passage
from tokc.heads.features import Example
from tokc.heads.modules import Eagle, Medusa
from tokc.heads.rows import row_of
from tokc.heads.training import module_of
from tokc.importers.drafts import draft_of
from tokc.importers.heads import load_heads
from tokc.importers.rope import Rope
from tokc.quality.running import draft_logits

HIDDEN, DIM, VOCAB, TOKENS, STEPS = 32, 8, 40, 11, 3


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    program = decoder("smollm2")
    tensor = program.graph.initializers["model.embed_tokens.weight"].const_value
    assert tensor is not None
    table = np.asarray(tensor.numpy())
    cos, sin = Rope(10000.0).tables(DIM, 64)
    return Backbone("tiny", program.config, table, table, cos, sin, "", "", "")


def example(seed: int, tokens: int = TOKENS) -> Example:
    rng = np.random.default_rng(seed)
    passage = Passage(rng.integers(0, VOCAB, tokens).astype(np.int32), 1, "chat")
    return Example(passage, rng.normal(size=(tokens, HIDDEN)).astype(np.float16))


def loaded(backbone: Backbone, tensors: dict) -> Eagle | Medusa:
    module = module_of("eagle" if "fc.weight" in tensors else "medusa", backbone)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return module


def eagle_tensors(backbone: Backbone) -> dict:
    config = backbone.config
    sizes = (config.heads * DIM, config.kv_heads * DIM)
    return eagle_heads(HIDDEN, sizes, norm=True, intermediate=config.intermediate)


@torch.no_grad()
def test_each_step_of_an_eagle_is_the_draft_gone_on_from_its_own_features(backbone: Backbone) -> None:
    tensors, given = eagle_tensors(backbone), example(1)
    row = row_of([given], torch.from_numpy(backbone.embedding), STEPS)
    made = loaded(backbone, tensors).predictions(row, STEPS)
    ids, features = given.passage.tokens[1:], given.features.astype(np.float32)
    for begin in range(TOKENS - STEPS - 1):
        known = features[: begin + 1]
        for step in range(STEPS):
            count = len(known)
            _, out = eagle_logits(
                tensors, backbone.embedding, backbone.head, ids[:count], known, dim=DIM, epsilon=1e-5
            )
            np.testing.assert_allclose(made[step][count].numpy(), out[-1], atol=2e-4, rtol=1e-4)
            known = np.concatenate([known, out[-1:]])


@torch.no_grad()
def test_passages_of_a_row_do_not_see_each_other(backbone: Backbone) -> None:
    module = loaded(backbone, eagle_tensors(backbone))
    table = torch.from_numpy(backbone.embedding)
    first, second = example(1), example(2, 9)
    together = row_of([first, second], table, STEPS)
    alone = row_of([second], table, STEPS)
    for a, b in zip(module.predictions(together, STEPS), module.predictions(alone, STEPS), strict=True):
        torch.testing.assert_close(a[TOKENS:][alone.targets], b[alone.targets])
    assert (together.targets[together.targets >= TOKENS] - TOKENS).tolist() == alone.targets.tolist()
    assert alone.targets.tolist() == [3, 4, 5, 6, 7]


@torch.no_grad()
def test_an_eagle_has_the_logits_of_its_program(backbone: Backbone, tmp_path: Path) -> None:
    tensors, given = eagle_tensors(backbone), example(1)
    row = row_of([given], torch.from_numpy(backbone.embedding), 1)
    (made,) = loaded(backbone, tensors).predictions(row, 1)
    heads = load_heads(saved(tensors, tmp_path / "heads.safetensors"))
    program = draft_of(heads, decoder("smollm2")).program
    ids, features = given.passage.tokens[None, 1:], given.features[None, :-1].astype(np.float32)
    found = draft_logits(program, ids.astype(np.int64), features)[0]
    np.testing.assert_allclose(made[1:].numpy() @ backbone.head.T, found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_medusa_has_the_logits_of_its_program_and_of_the_papers_code(
    backbone: Backbone, tmp_path: Path
) -> None:
    tensors, given = medusa_heads(HIDDEN, 4), example(1)
    row = row_of([given], torch.from_numpy(backbone.embedding), 4)
    made = loaded(backbone, tensors).predictions(row, 4)
    features = given.features.astype(np.float32)
    expected = medusa_logits(tensors, backbone.head, features)
    heads = load_heads(saved(tensors, tmp_path / "heads.safetensors"))
    program = draft_of(heads, decoder("smollm2")).program
    found = draft_logits(program, given.passage.tokens[None].astype(np.int64), features[None])[0]
    for step, states in enumerate(made):
        logits = states[step + 1 :].numpy() @ backbone.head.T
        for other in (expected, found):
            np.testing.assert_allclose(
                logits, other[: TOKENS - step - 1, step], atol=1e-4, rtol=1e-4, err_msg=f"head {step}"
            )
