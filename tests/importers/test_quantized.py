"""Quantized checkpoints mean what their formats' specifications say, to the bit, and keep their codes."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.importers.quantized_writing import FORMATS, quantize_folder
from tests.importers.running import logits
from tests.tiny_models import tiny_folder, tiny_model
from tokc.errors import ImportRefused
from tokc.importers import load_folder
from tokc.ir.program import Program
from tokc.pipeline import Pipeline

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
NAME = "model.layers.0.mlp.down_proj.weight"
SIZES = {"num_hidden_layers": 1}
GRIDS = {  # type of the codes, whether there is an offset, the block
    "gptq 4 symmetric": (ir.DataType.UINT4, False, 32),
    "gptq 4": (ir.DataType.UINT4, True, 32),
    "gptq 4 v2": (ir.DataType.UINT4, True, 32),
    "gptq 3": (ir.DataType.UINT4, False, 32),
    "gptq 2": (ir.DataType.UINT4, True, 32),
    "gptq 8": (ir.DataType.INT8, False, 32),
    "gptq 8 with zero points": (ir.DataType.INT8, True, 32),
    "gptq 4 sorted": (ir.DataType.UINT4, False, 1),
    "awq": (ir.DataType.UINT4, True, 32),
    "awq symmetric": (ir.DataType.UINT4, False, 32),
    "pack-quantized 4": (ir.DataType.UINT4, False, 32),
    "pack-quantized 4 with zero points": (ir.DataType.UINT4, True, 32),
    "pack-quantized 8": (ir.DataType.INT8, False, 32),
    "pack-quantized 3": (ir.DataType.UINT4, False, 32),
    "pack-quantized 4 sorted": (ir.DataType.UINT4, False, 1),
    "int-quantized": (ir.DataType.INT8, False, 96),
    "nvfp4": (ir.DataType.INT8, False, 16),
    "mxfp4": (ir.DataType.INT8, False, 32),
}


def value_of(program: Program, name: str) -> np.ndarray:
    """Return a weight, on a grid or plain, in f32."""
    if name in program.graph.initializers:
        return tensor(program, name)
    node = next(node for node in program.graph if node.outputs[0].name == name)
    block, zero = node.attributes.get_int("block_size", 32), node.attributes.get_int("zero_point", 0)
    codes = tensor(program, f"{name}.q").astype(np.float32) - zero
    spread = [
        np.repeat(tensor(program, f"{name}.{part}"), block, axis=1)[:, : codes.shape[1]]
        for part in ("scale", "offset")
        if f"{name}.{part}" in program.graph.initializers
    ]
    return codes * spread[0] + (spread[1] if len(spread) > 1 else 0)


def tensor(program: Program, name: str) -> np.ndarray:
    found = program.graph.initializers[name].const_value
    assert found is not None
    return found.numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_read_to_the_bit(name: str, tmp_path: Path) -> None:
    values = quantize_folder(tiny_folder("llama", tmp_path, **SIZES), name)
    program = load_folder(tmp_path)
    for key, want in values.items():
        np.testing.assert_array_equal(value_of(program, key), want)
    if name in GRIDS:
        dtype, has_offset, block = GRIDS[name]
        node = next(node for node in program.graph if node.outputs[0].name == NAME)
        assert program.graph.initializers[f"{NAME}.q"].dtype == dtype
        assert (len(node.inputs) > 2) is has_offset
        assert node.attributes.get_int("block_size", 0) == block
    else:
        assert NAME in program.graph.initializers


@pytest.mark.parametrize("name", ["gptq 4 symmetric", "gptq 4 sorted", "awq", "fp8 block"])
def test_a_quantized_model_equals_transformers(name: str, tmp_path: Path) -> None:
    values = quantize_folder(tiny_folder("qwen2", tmp_path, **SIZES), name)
    model = tiny_model("qwen2", **SIZES)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values[key].copy()))
        want = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(logits(load_folder(tmp_path), IDS) - want).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "difference"),
    [("gptq 4", 0.03), ("awq", 0.03), ("gptq 8", 0.03), ("gptq 4 sorted", 0.1), ("int-quantized", 0.05)],
)
def test_the_passes_keep_what_the_quantizer_made(name: str, difference: float, tmp_path: Path) -> None:
    quantize_folder(tiny_folder("llama", tmp_path, **SIZES), name)
    program = load_folder(tmp_path)
    made = Pipeline.parse("fuse-linear,fuse-qkv,quantize-weights{act_group=0 head_bits=32}").run(program)
    assert not [node for node in made.graph if node.op_type in {"BlockDequantize", "Linear"}][1:]
    assert np.abs(logits(made, IDS) - logits(program, IDS)).max() < difference


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def without(folder: Path, part: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[f"{NAME.removesuffix('.weight')}.{part}"]
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        (
            "awq",
            {"quant_method": "bitsandbytes"},
            "by 'bitsandbytes' are not supported; supported are gptq, awq,",
        ),
        ("awq", {"version": "gemv"}, "AWQ weights of version 'gemv' are not supported; supported is gemm"),
        ("awq", {"bits": 3}, "AWQ weights of '3' bits are not supported; supported are 4"),
        ("awq", {"group_size": 16}, r"scales' has shape \[3, 64\], its layer asks for \[6, 64\]"),
        ("gptq 4", {"bits": 8}, r"scales' has shape \[., 64\], its layer asks for \[., 64\]"),
        ("gptq 4", {"checkpoint_format": "marlin"}, "format 'marlin' are not supported; supported are gptq,"),
        (
            "pack-quantized 4",
            {"format": "marlin-24"},
            "format 'marlin-24' are not supported; supported are pack",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    name: str, changes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    quantize_folder(tiny_folder("llama", tmp_path, **SIZES), name)
    edit(tmp_path, **changes)
    with pytest.raises(ImportRefused, match=problem) as refused:
        load_folder(tmp_path)
    assert refused.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "part", "problem"),
    [
        ("gptq 4", "scales", "tensor 'model.layers.0.mlp.down_proj.scales' is missing"),
        ("fp8 block", "weight_scale_inv", "is in 8-bit floats and has no 'weight_scale_inv'"),
    ],
)
def test_a_layer_that_is_not_whole_is_refused(name: str, part: str, problem: str, tmp_path: Path) -> None:
    quantize_folder(tiny_folder("llama", tmp_path, **SIZES), name)
    without(tmp_path, part)
    with pytest.raises(ImportRefused, match=problem):
        load_folder(tmp_path)
