"""Adapters are merged as peft merges them; one that does not fit is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.importers.gguf_writing import Kind, gguf_model, write_gguf
from tests.importers.running import logits
from tests.importers.test_quantized import value_of
from tests.tiny_models import tiny_folder, tiny_model
from tokc.artifact.build_cache import key_of
from tokc.errors import ImportRefused
from tokc.importers import import_model

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.2.mlp.down_proj"
SHAPES = {Q: (64, 64), DOWN: (64, 96), "model.layers.1.self_attn.v_proj": (32, 64)}


def write_adapter(
    folder: Path, seed: int = 0, rank: int = 4, extra: dict[str, np.ndarray] | None = None, **config: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write an adapter as peft lays it out; return A and B by module."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    pairs = {
        name: (
            rng.standard_normal((rank, ins)).astype(np.float32),
            rng.standard_normal((outs, rank)).astype(np.float32),
        )
        for name, (outs, ins) in SHAPES.items()
    }
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors | (extra or {}), folder / "adapter_model.safetensors")
    facts = {"peft_type": "LORA", "r": rank, "lora_alpha": 2, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    return pairs


def folders(tmp_path: Path, **config: Any) -> tuple[Path, Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    model, adapter = tiny_folder("llama", tmp_path / "model"), tmp_path / "adapter"
    return model, adapter, write_adapter(adapter, **config)


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (0.5, 0.5)),
        ({"use_rslora": True}, (1.0, 1.0)),
        ({"alpha_pattern": {"q_proj": 6, "layers.2.mlp.down_proj": 1}}, (1.5, 0.25)),
    ],
)
def test_an_adapter_is_added_at_its_scale(
    config: dict[str, Any], scales: tuple[float, float], tmp_path: Path
) -> None:
    model, adapter, pairs = folders(tmp_path, **config)
    base = load_file(model / "model.safetensors")
    program = import_model(model, lora=[adapter])
    for name, scale in zip((Q, DOWN), scales, strict=True):
        a, b = (part.astype(np.float64) for part in pairs[name])
        want = base[f"{name}.weight"] + scale * (b @ a)
        assert np.abs(value_of(program, f"{name}.weight") - want).max() < 1e-5
    untouched = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(value_of(program, untouched), base[untouched])


def test_weights_that_are_rescaled_by_rows_have_the_adapters_magnitude(tmp_path: Path) -> None:
    magnitude = np.linspace(0.5, 2, 64).astype(np.float32)
    extra = {f"base_model.model.{Q}.lora_magnitude_vector": magnitude}
    model, adapter, pairs = folders(tmp_path, use_dora=True, extra=extra)
    base = load_file(model / "model.safetensors")[f"{Q}.weight"].astype(np.float64)
    a, b = (part.astype(np.float64) for part in pairs[Q])
    moved = base + 0.5 * (b @ a)
    want = moved * (magnitude / np.linalg.norm(moved, axis=1))[:, None]
    program = import_model(model, lora=[adapter])
    assert np.abs(value_of(program, f"{Q}.weight") - want).max() < 1e-5


def test_adapters_are_merged_in_order_and_named_in_the_provenance(tmp_path: Path) -> None:
    head = np.full((96, 64), 0.25, np.float32)
    model, first, one = folders(tmp_path, extra={"base_model.model.lm_head.weight": head})
    second = tmp_path / "second"
    two = write_adapter(second, seed=1)
    program = import_model(model, lora=[first, second])
    base = load_file(model / "model.safetensors")[f"{Q}.weight"].astype(np.float64)
    want = base + sum(0.5 * (pair[Q][1].astype(np.float64) @ pair[Q][0]) for pair in (one, two))
    assert np.abs(value_of(program, f"{Q}.weight") - want).max() < 1e-5
    np.testing.assert_array_equal(value_of(program, "lm_head.weight"), head)
    named = [name for name in program.assets.provenance if name.startswith("lora")]
    assert named == [
        f"lora {index}: {folder}/{file}"
        for index, folder in ((1, "adapter"), (2, "second"))
        for file in ("adapter_config.json", "adapter_model.safetensors")
    ]


def test_an_adapter_is_part_of_a_builds_key(tmp_path: Path) -> None:
    model, adapter, _ = folders(tmp_path)
    keys = {key_of(model, {"target": "cpu"}, "m", lora=lora) for lora in ([], [adapter], [adapter, adapter])}
    write_adapter(adapter, seed=3)
    keys.add(key_of(model, {"target": "cpu"}, "m", lora=[adapter]))
    assert len(keys) == 4


def test_an_adapter_goes_onto_a_quantized_file_too(tmp_path: Path) -> None:
    pairs = write_adapter(tmp_path / "adapter")
    weights = write_gguf(gguf_model("llama"), "llama", tmp_path / "m.gguf", Kind.Q4_0)
    program = import_model(tmp_path / "m.gguf", lora=[tmp_path / "adapter"])
    want = weights[f"{Q}.weight"] + 0.5 * (pairs[Q][1] @ pairs[Q][0])
    # llama's rows of q are stored in another order; they are put back before the adapter is added
    plain = value_of(import_model(tmp_path / "m.gguf"), f"{Q}.weight")
    assert np.abs(value_of(program, f"{Q}.weight") - plain - (want - weights[f"{Q}.weight"])).max() < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft itself
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"bias": "none", "r": 8}])
def test_a_merge_equals_pefts(options: dict[str, Any], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import torch

    model = tiny_model("llama")
    targets = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
    if options.get("use_dora"):
        targets.remove("embed_tokens")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 3, "target_modules": targets, **options})
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    folder = tiny_folder("llama", tmp_path / "model")
    merged = wrapped.merge_and_unload()
    with torch.no_grad():
        want = merged(torch.tensor(IDS)).logits.numpy()
    assert np.abs(logits(import_model(folder, lora=[tmp_path / "adapter"]), IDS) - want).max() < 1e-4


def of_another_width(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"base_model.model.{Q}.lora_A.weight"] = np.zeros((4, 32), np.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")


def without_b(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[f"base_model.model.{Q}.lora_B.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors")


def of_a_deeper_model(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("layers.0", "layers.7"): one for name, one in tensors.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip


def stating(**changes: Any) -> Any:
    def edit(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def without_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def truncated(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (of_another_width, rf"changes '{Q}\.weight' of shape \[64, 32\], the model's is \[64, 64\]"),
        (
            of_a_deeper_model,
            r"changes 'model\.layers\.7\.self_attn\.q_proj\.weight', which the model does not",
        ),
        (without_b, rf"tensor '{Q}\.lora_B' is missing"),
        (stating(r=8), rf"rank for '{Q}' is 8, its tensors are \[4, 64\], \[64, 4\]"),
        (stating(peft_type="IA3"), "an adapter of type 'IA3' cannot be merged; supported is LORA"),
        (stating(lora_bias=True), "'lora_bias' is True, which is not supported"),
        (stating(lora_alpha=None), "'lora_alpha' of the adapter is 'None', not a positive number"),
        (without_weights, "the adapter has no 'adapter_model.safetensors'"),
        (without_config, "is not an adapter: it has no 'adapter_config.json'"),
        (truncated, "is truncated"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(damage: Any, problem: str, tmp_path: Path) -> None:
    model, adapter, _ = folders(tmp_path)
    damage(adapter)
    with pytest.raises(ImportRefused, match=problem) as refused:
        import_model(model, lora=[adapter])
    assert refused.value.hint
