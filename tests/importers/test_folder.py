"""Every family, at a tiny random size, computes what transformers computes."""

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.importers.running import logits
from tests.tiny_models import FAMILIES, tiny_folder, tiny_model
from tokc.importers import import_model, load_folder
from tokc.importers.mapping import release_pages

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
TOLERANCE = 1e-4


def expected(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_transformers_in_prefill_and_cached_decode(family: str, tmp_path: Path) -> None:
    program = load_folder(tiny_folder(family, tmp_path))
    want = expected(tiny_model(family))
    assert np.abs(logits(program, IDS) - want).max() < TOLERANCE
    assert np.abs(logits(program, IDS, cuts=(11, 12, 13, 20)) - want).max() < TOLERANCE


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    program = load_folder(tiny_folder("llama", tmp_path, shard="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert np.abs(logits(program, IDS) - expected(tiny_model("llama"))).max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_narrow_weights_are_widened_exactly(family: str, dtype: str, tmp_path: Path) -> None:
    program = load_folder(tiny_folder(family, tmp_path, dtype=dtype))
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert np.abs(logits(program, IDS) - expected(narrow)).max() < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_the_embedding_only_if_tied(tied: bool, tmp_path: Path) -> None:
    program = load_folder(tiny_folder("qwen2", tmp_path, tie_word_embeddings=tied))
    assert program.config.tied_embedding is tied
    assert ("lm_head.weight" in program.graph.initializers) is not tied
    model = tiny_model("qwen2", tie_word_embeddings=tied)
    assert np.abs(logits(program, IDS) - expected(model)).max() < TOLERANCE


def test_the_older_spelling_of_rotary_parameters_means_the_same(tmp_path: Path) -> None:
    path = tiny_folder("llama3", tmp_path) / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config))
    assert np.abs(logits(load_folder(tmp_path), IDS) - expected(tiny_model("llama3"))).max() < TOLERANCE


def test_the_older_spelling_of_gemma_means_the_same(tmp_path: Path) -> None:
    path = tiny_folder("gemma3", tmp_path, rope_parameters=None) / "config.json"
    config = json.loads(path.read_text())
    for key in ("rope_parameters", "hidden_activation"):
        config.pop(key)
    config |= {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}
    path.write_text(json.dumps(config))
    assert np.abs(logits(load_folder(tmp_path), IDS) - expected(tiny_model("gemma3"))).max() < TOLERANCE


def test_a_model_of_text_and_images_gives_its_text_part(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tiny_folder("gemma3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.", "language_model.model.", 1): value for name, value in weights.items()}
    renamed["vision_tower.patch.weight"] = np.zeros((2, 2), np.float32)
    save_file(renamed, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    text.pop("architectures")
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    assert np.abs(logits(load_folder(tmp_path), IDS) - expected(tiny_model("gemma3"))).max() < TOLERANCE


def test_context_caps_the_rotary_tables(tmp_path: Path) -> None:
    program = import_model(tiny_folder("llama", tmp_path), context=40)
    assert program.config.context == 40
    assert list(program.graph.initializers["rope.cos"].shape or ()) == [40, 8]


def test_weights_stay_in_their_file(tmp_path: Path) -> None:
    program = load_folder(tiny_folder("llama", tmp_path))
    tensor = program.graph.initializers["model.embed_tokens.weight"].const_value
    assert tensor is not None
    values = tensor.numpy()
    before = values.copy()
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    release_pages()
    assert (values == before).all()


def test_generation_defaults_and_stops_come_along(tmp_path: Path) -> None:
    tiny_folder("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6}))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    program = load_folder(tmp_path)
    assert program.config.eos_token_ids == (2, 7)
    assert program.assets.generation_config["temperature"] == 0.6
    assert program.assets.licence == "apache-2.0"
    assert set(program.assets.provenance) == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_window_that_is_stated_as_null_is_none_and_one_that_is_not_stated_is_the_familys(
    tmp_path: Path,
) -> None:
    path = tiny_folder("mistral", tmp_path, sliding_window=None) / "config.json"
    config = json.loads(path.read_text())
    windows = []
    for stated in ({"sliding_window": None}, {}):
        path.write_text(json.dumps({**{k: v for k, v in config.items() if k != "sliding_window"}, **stated}))
        masks = [node for node in load_folder(tmp_path).graph if node.op_type == "CausalMask"]
        windows.append([node.attributes.get_int("window", 0) for node in masks])
    assert windows == [[0], [4096]]
