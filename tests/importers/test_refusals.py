"""A model that cannot be read is refused with what, where and what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny_models import tiny_folder
from tokc.errors import ImportRefused
from tokc.importers import import_model

WEIGHTS = "model.safetensors"


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def drop_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-5000])


def truncate_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:200])


def drop_shard(folder: Path) -> None:
    tiny_folder("llama", folder, shard="100KB")
    next(iter(folder.glob("model-0000*.safetensors"))).unlink()
    (folder / WEIGHTS).unlink(missing_ok=True)


def write_integers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = weights["model.norm.weight"].astype("int32")
    save_file(weights, folder / WEIGHTS)


def add_tensor(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.self_attn.q_norm.weight"] = weights["model.norm.weight"]
    save_file(weights, folder / WEIGHTS)


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 1}')


CASES = {
    "no config": (drop_config, "is not a model folder: it has no 'config.json'"),
    "broken config": (break_config, "'config.json' cannot be read"),
    "no weights": (drop_weights, "the folder has no 'model.safetensors'"),
    "missing tensor": (drop_tensor, "tensor 'model.layers.1.mlp.up_proj.weight' is missing"),
    "truncated": (truncate, "is truncated: tensor '"),
    "truncated header": (truncate_header, "its header claims"),
    "missing shard": (drop_shard, "shard 'model-0000"),
    "integers": (write_integers, "has type 'I32'; supported are F32, F16, BF16"),
    "foreign tensor": (add_tensor, "'model.layers.0.self_attn.q_norm.weight' has no place in family 'llama'"),
    "broken tokenizer": (break_tokenizer, "'tokenizer.json' cannot be read"),
    "architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        "unknown architecture 'MambaForCausalLM'",
    ),
    "rope type": (edit_config(rope_parameters={"rope_type": "spiral"}), "of type 'spiral' are not supported"),
    "shape": (edit_config(intermediate_size=128), "has shape [96, 64], the configuration asks for [128, 64]"),
    "too few layers": (
        edit_config(num_hidden_layers=2),
        "'num_hidden_layers' is 2, but the weights have 3 layers",
    ),
    "too many layers": (
        edit_config(num_hidden_layers=4),
        "'num_hidden_layers' is 4, but the weights have 3 layers",
    ),
    "vocabulary": (
        edit_config(vocab_size=90),
        "'vocab_size' is 90, but the weights have 96 rows in 'model.embed_tokens.weight'",
    ),
    "softcap": (
        edit_config(final_logit_softcapping=30.0),
        "'final_logit_softcapping' is 30.0, which is not supported in family 'llama'",
    ),
    "heads": (edit_config(num_key_value_heads=3), "4 attention heads cannot share 3 key-value heads"),
    "no size": (edit_config(hidden_size=None), "the configuration has no 'hidden_size'"),
    "text as size": (edit_config(hidden_size="64"), "'hidden_size' is '64', not a number"),
    "activation": (edit_config(hidden_act="relu"), "activation 'relu' is not supported"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_is_refused_with_a_place_and_a_hint(case: str, tmp_path: Path) -> None:
    damage, problem = CASES[case]
    damage(tiny_folder("llama", tmp_path))
    with pytest.raises(ImportRefused) as refused:
        import_model(tmp_path)
    assert problem in refused.value.problem
    assert str(tmp_path) in (refused.value.where or "")
    assert refused.value.hint


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="there is no folder"):
        import_model(tmp_path / "nothing")


def test_a_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ImportRefused, match="a context of 129 tokens is out of range; the model was made for up to 128"
    ):
        import_model(tiny_folder("llama", tmp_path), context=129)


@pytest.mark.parametrize(
    ("architecture", "nearest"), [("Qwen4ForCausalLM", "qwen"), ("GPTNeoXJapaneseForCausalLM", "gpt_neox")]
)
def test_an_unknown_architecture_is_told_the_nearest_family(
    architecture: str, nearest: str, tmp_path: Path
) -> None:
    edit_config(architectures=[architecture])(tiny_folder("llama", tmp_path))
    with pytest.raises(ImportRefused, match=f"unknown architecture '{architecture}'") as refused:
        import_model(tmp_path)
    assert f"the nearest family is '{nearest}" in str(refused.value.hint)
    assert "docs/adding-a-model.md" in str(refused.value.hint)


def test_a_fused_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    edit_config(num_key_value_heads=4)(tiny_folder("phi3", tmp_path))
    with pytest.raises(ImportRefused, match=r"qkv_proj.weight' has shape \[128, 64\].* asks for \[192, 64\]"):
        import_model(tmp_path)


def test_a_setting_that_a_family_does_not_heed_is_refused(tmp_path: Path) -> None:
    edit_config(qk_layernorm=True)(tiny_folder("stablelm", tmp_path))
    with pytest.raises(ImportRefused, match="'qk_layernorm' is True, which is not supported"):
        import_model(tmp_path)
