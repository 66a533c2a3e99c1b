"""Weights cut over chips: columns then rows, and answers that stay the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import repository
from tests.targets.tpu.programs import tiny_program
from tests.tiny_models import tiny_folder
from tokc.targets.base import Precision
from tokc.targets.tpu.sharding import COLUMNS, ROWS, shardings

FOUR = "--xla_force_host_platform_device_count=4"


def test_inputs_are_cut_by_columns_and_the_way_back_by_rows(tmp_path: Path) -> None:
    program = tiny_program(tmp_path, Precision("f32", kv="f32"), num_key_value_heads=4)
    found = shardings(program, 4)
    layer = {name.split("layers.1.")[1]: axes for name, axes in found.weights.items() if "layers.1." in name}
    assert layer == {
        **{f"self_attn.{name}_proj.weight": COLUMNS for name in "qkv"},
        "self_attn.o_proj.weight": ROWS,
        "mlp.gate_proj.weight": COLUMNS,
        "mlp.up_proj.weight": COLUMNS,
        "mlp.down_proj.weight": ROWS,
    }
    assert found.weights["lm_head.weight"] == COLUMNS, "the head is cut by vocabulary"
    assert found.weights["model.embed_tokens.weight"] == COLUMNS
    assert "model.norm.weight" not in found.weights
    assert any(found.attention)


def test_heads_that_do_not_divide_stay_whole(tmp_path: Path) -> None:
    found = shardings(tiny_program(tmp_path, Precision("f32", kv="f32")), 4)  # 2 heads of keys and values
    assert not any(found.attention)
    assert not any("k_proj" in name or "q_proj" in name for name in found.weights)
    assert found.weights["model.layers.0.self_attn.o_proj.weight"] == ROWS
    assert found.weights["model.layers.0.mlp.up_proj.weight"] == COLUMNS


def test_scales_are_cut_with_their_codes(tmp_path: Path) -> None:
    program = tiny_program(
        tmp_path, Precision("int8", 32, "f32"), num_key_value_heads=4, intermediate_size=128
    )
    found = shardings(program, 4).weights
    assert found["model.layers.0.mlp.up_proj.weight.scale"] == COLUMNS
    assert found["model.layers.0.mlp.down_proj.weight.scale"] == ROWS
    names = ("model.layers.0.self_attn.o_proj.weight.q", "model.layers.0.self_attn.o_proj.weight.scale")
    assert not set(names) & set(found), "two groups do not divide by four"


def test_one_chip_has_everything(tmp_path: Path) -> None:
    assert shardings(tiny_program(tmp_path, Precision("f32", kv="f32")), 1).weights == {}


def test_four_devices_answer_as_the_program_does(tmp_path: Path) -> None:
    """Run the executor over four devices of XLA's making, which exchange as chips would."""
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 4, "intermediate_size": 128}
    model = tiny_folder("llama", tmp_path / "model", **sizes)
    command = [sys.executable, "-m", "tests.targets.tpu.four_devices", str(model), str(tmp_path / "out.tokc")]
    environment = {**os.environ, "XLA_FLAGS": FOUR, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=repository(), env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["last"] == "lower"
    assert found["difference"] < 1e-4
    sums = {name: count for name, count in found["collectives"].items() if name.startswith("all-reduce")}
    assert sum(sums.values()) >= 4, "each of two layers sums after its attention and after its MLP"
    index = json.loads((tmp_path / "out.tokc" / "kernels" / "xla.json").read_text())
    assert index["chips"] == 4
    assert index["cache"]["axes"] == [None, None, "tp", None]
