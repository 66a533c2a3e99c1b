"""Rotary tables equal those of transformers, of every kind of scaling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.importers.running import logits
from tests.tiny_models import LONGROPE, tiny_folder, tiny_model
from tokc.errors import ImportRefused
from tokc.importers import load_folder
from tokc.importers.rope import ropes_of, rotated_first
from tokc.importers.rope_scaling import Lengths

DIM, TRAINED = 32, 128
FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [2.0 + 0.5 * i for i in range(16)],
}
# kind -> (its parameters, the context that is built for)
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, 128),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, 300),
    "dynamic_short": ({"rope_type": "dynamic", "factor": 3.0}, 100),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
    "yarn_stated": (
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16.0,
         "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False},
        128,
    ),
    "longrope_short": ({"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 64}, 64),
    "longrope_long": ({"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 64}, 128),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_tables_equal_those_of_transformers(kind: str) -> None:
    parameters, context = CASES[kind]
    stated = {"rope_theta": 5000.0, **parameters}
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": TRAINED}
    config = AutoConfig.for_model("llama", rope_parameters=stated, **sizes)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, context, DIM), torch.arange(context)[None])
    lengths = Lengths(TRAINED, context, DIM)
    rope, local = ropes_of({"rope_parameters": stated}, None, lengths, DIM, "config.json")
    assert rope == local
    found = rope.tables(DIM, context)
    for ours, theirs in zip(found, (cos, sin), strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, : DIM // 2].numpy(), rtol=0, atol=2e-5)


def test_a_part_of_a_head_is_rotated_by_a_whole_rotation_of_its_elements_in_another_order() -> None:
    rng = np.random.default_rng(0)
    head, rotated, half = rng.standard_normal(16), 6, 3
    rope, _ = ropes_of({}, None, Lengths(TRAINED, 20, rotated), 16, "config.json")
    cos, sin = (table[17] for table in rope.tables(16, 20))
    want = head.copy()
    want[:half] = head[:half] * cos[:half] - head[half:rotated] * sin[:half]
    want[half:rotated] = head[half:rotated] * cos[:half] + head[:half] * sin[:half]
    order = rotated_first(16, rotated)
    assert sorted(order) == list(range(16))
    low, high = head[order][:8], head[order][8:]
    turned = np.concatenate([low * cos - high * sin, high * cos + low * sin])
    np.testing.assert_allclose(turned, want[order], atol=1e-12)


def test_longrope_takes_the_long_factors_where_the_context_is_beyond_the_original(tmp_path: Path) -> None:
    folder = tiny_folder("phi4", tmp_path)
    ids = np.random.default_rng(0).integers(3, 96, (1, 100))
    with torch.no_grad():
        want = tiny_model("phi4")(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits(load_folder(folder, context=128), ids) - want).max() < 1e-4
    short = ids[:, : LONGROPE["original_max_position_embeddings"]]
    with torch.no_grad():
        want = tiny_model("phi4")(torch.tensor(short)).logits.numpy()
    program = load_folder(folder)
    assert program.config.context == LONGROPE["original_max_position_embeddings"]
    assert np.abs(logits(program, short) - want).max() < 1e-4


def test_scaling_may_reach_beyond_the_stated_context(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    folder = tiny_folder("qwen2", tmp_path, rope_parameters=yarn)
    assert load_folder(folder, context=512).config.context == 512
    with pytest.raises(ImportRefused, match="up to 512"):
        load_folder(folder, context=513)


def test_factors_of_another_number_than_the_frequencies_are_refused() -> None:
    stated = {"rope_parameters": {**CASES["longrope_long"][0], "long_factor": [1.0]}}
    with pytest.raises(ImportRefused, match="'long_factor' is 1 numbers, not 16 numbers"):
        ropes_of(stated, None, Lengths(TRAINED, 128, DIM), DIM, "config.json")
