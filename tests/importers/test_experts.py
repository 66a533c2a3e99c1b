"""Experts of a checkpoint: one tensor each or one for all, read when asked for, refused where they misfit."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from tests.importers.running import logits
from tests.tiny_models import tiny_folder
from tokc.errors import ImportRefused
from tokc.importers import load_folder
from tokc.importers.checkpoint import Dense, Grid, dequantized
from tokc.importers.experts import stacked
from tokc.ir.program import Program
from tokc.ir.rewrite import Missed, collect_remarks, parts_of
from tokc.passes.fuse_linear import FuseLinear
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.quality.calibration import Calibration, calibrating

IDS = np.random.default_rng(0).integers(3, 96, (2, 12))
EXPERTS = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    return tiny_folder("qwen2_moe", tmp_path / "model", num_hidden_layers=1)


def changed(folder: Path, **config: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_a_tensor_for_all_experts_is_read_as_one_for_each(folder: Path) -> None:
    apart = logits(load_folder(folder), IDS)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    prefix = "model.layers.0.mlp.experts."
    each = [
        {part: tensors.pop(f"{prefix}{i}.{part}_proj.weight") for part in ("gate", "up", "down")}
        for i in range(EXPERTS)
    ]
    tensors[f"{prefix}gate_up_proj"] = np.stack([np.concatenate([one["gate"], one["up"]]) for one in each])
    tensors[f"{prefix}down_proj"] = np.stack([one["down"] for one in each])
    save_file(tensors, file)
    np.testing.assert_array_equal(logits(load_folder(folder), IDS), apart)


def stack(program: Program) -> list[np.ndarray]:
    weight = program.graph.initializers["model.layers.0.mlp.experts.down_proj.weight"].const_value
    assert weight is not None
    return [part.numpy() for part in parts_of(weight)]


def test_experts_lie_one_above_the_other_and_can_be_read_apart(folder: Path) -> None:
    program = load_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    parts = stack(program)
    assert len(parts) == EXPERTS
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, tensors[f"model.layers.0.mlp.experts.{i}.down_proj.weight"])
    whole = program.graph.initializers["model.layers.0.mlp.experts.down_proj.weight"].const_value
    assert whole is not None
    np.testing.assert_array_equal(whole.numpy(), np.concatenate(parts))


def test_experts_are_quantized_each_on_its_own_rows_and_the_router_not_at_all(folder: Path) -> None:
    program = FuseLinear().run(load_folder(folder))
    quantized = QuantizeWeights(bits=8).run(program)
    found = {node.op_type: node for node in quantized.graph}
    assert "MoeLinear" not in found
    weights = quantized.graph.initializers
    codes = weights["model.layers.0.mlp.experts.down_proj.weight.q"].const_value
    scale = weights["model.layers.0.mlp.experts.down_proj.weight.scale"].const_value
    assert codes is not None
    assert scale is not None
    w = np.concatenate(stack(program))
    near = codes.numpy() * np.repeat(scale.numpy().astype(np.float32), 32, axis=1)
    assert np.abs(near - w).max() <= scale.numpy().astype(np.float32).max() * 0.51
    assert found["MoeRouter"].inputs[1] is weights["model.layers.0.mlp.gate.weight"]


def test_a_calibrated_method_says_that_it_leaves_experts_to_another(folder: Path) -> None:
    program = FuseLinear().run(load_folder(folder))
    with collect_remarks() as remarks, calibrating(Calibration(ids=IDS)):
        made = QuantizeWeights(bits=4, method="gptq").run(program)
    assert "QuantMoeLinear" in {node.op_type for node in made.graph}
    reasons = [one.reason for one in remarks if isinstance(one, Missed) and "experts" in one.reason]
    assert len(reasons) == 2  # gate and up, down


def test_more_experts_a_token_than_there_are_are_refused(folder: Path) -> None:
    with pytest.raises(ImportRefused, match="'num_experts_per_tok' is 9, but there are 6 experts"):
        load_folder(changed(folder, num_experts_per_tok=9))


def test_an_expert_that_is_missing_or_too_many_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("model.layers.0.mlp.experts.3.up_proj.weight")
    save_file(tensors, file)
    with pytest.raises(ImportRefused, match=r"'model.layers.0.mlp.experts.3.up_proj.weight' is missing"):
        load_folder(folder)
    save_file({**tensors, **{f"model.layers.0.mlp.experts.{i}.up_proj.weight": lost for i in (3, 6)}}, file)
    with pytest.raises(
        ImportRefused, match=r"tensor 'model.layers.0.mlp.experts.6.up_proj.weight' has no place"
    ):
        load_folder(folder)


def grid(fill: int, zero_point: int = 8) -> Grid:
    codes = np.full((4, 32), fill, np.uint8).astype(ml_dtypes.uint4)
    scale = np.full((4, 1), 0.5 * fill, np.float16)
    return Grid(ir.tensor(codes), ir.tensor(scale), None, zero_point)


def test_experts_on_one_grid_stay_on_it_and_others_are_dequantized() -> None:
    whole = stacked([grid(3), grid(9)])
    assert isinstance(whole, Grid)
    np.testing.assert_array_equal(whole.q.numpy().astype(np.uint8)[:, 0], [3] * 4 + [9] * 4)
    values = dequantized(whole)
    assert values[0, 0] == (3 - 8) * 1.5
    assert values[4, 0] == (9 - 8) * 4.5
    mixed = stacked([grid(3), grid(9, zero_point=0)])
    assert isinstance(mixed, Dense)
    np.testing.assert_array_equal(mixed.tensor.numpy()[:, 0], [-7.5] * 4 + [40.5] * 4)
