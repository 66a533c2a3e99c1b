"""Kernels against the IR, op by op, over a tiny model's artifact; one of them damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.tiny_models import tiny_folder
from tokc.build_inputs import model_and_pipeline
from tokc.cli.app import app
from tokc.compiler import Request, build, precision
from tokc.errors import TokcError
from tokc.importers import import_model
from tokc.op_verification import OpError, verify_ops
from tokc.runtime.safetensors import map_file

runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
CONTEXT = 128
DAMAGED = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("smollm2", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    request = Request(model, precision=precision("int8", None), context=CONTEXT, check=False)
    return build(request, model.parent / "apart" / "tiny.tokc").artifact


def errors(artifact: Path, model: Path) -> tuple[OpError, ...]:
    found, pipeline = model_and_pipeline(artifact, model, None)
    return verify_ops(artifact, import_model(found, CONTEXT), pipeline)


def test_each_kernel_of_a_sound_artifact_does_what_its_op_says(artifact: Path, model: Path) -> None:
    found = errors(artifact, model)
    plan = json.loads((artifact / "plan.json").read_text())
    assert {one.launch for one in found} == set(range(len(plan["launches"])))
    assert not [one for one in found if one.wrong]
    assert {one.op for one in found} >= {"QuantLinear", "PagedAttention", "AddRmsNorm", "GatedActivation"}
    assert max(one.error for one in found if one.op == "QuantLinear") < 1e-3


def test_the_one_kernel_that_reads_a_damaged_weight_is_named(
    artifact: Path, model: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "tiny.tokc")
    weight = np.array(map_file(copy / "model.safetensors")[DAMAGED]).reshape(-1).view(np.uint8)
    data = (copy / "model.safetensors").read_bytes()
    at = data.index(weight.tobytes())
    damaged = np.frombuffer(data, np.uint8).copy()
    damaged[at : at + len(weight) // 2 : 3] ^= 0x15
    (copy / "model.safetensors").write_bytes(damaged.tobytes())
    (wrong,) = [one for one in errors(copy, model) if one.wrong]
    assert (wrong.op, wrong.layer) == ("QuantLinear", 1)
    plan = json.loads((copy / "plan.json").read_text())
    operands = [plan["buffers"][at]["name"] for at, _ in plan["launches"][wrong.launch]["operands"]]
    assert DAMAGED in operands


def test_the_command_prints_errors_by_op_and_asks_for_the_model(
    artifact: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["verify", str(artifact), "--ops"]
    said = runner.invoke(app, [*command, "--reference", str(model)], catch_exceptions=False).stdout
    assert any(line.startswith("PagedAttention ") for line in said.splitlines())
    rows = json.loads(runner.invoke(app, [*command, "--reference", str(model), "--json"]).stdout)
    assert {row["wrong"] for row in rows} == {False}
    monkeypatch.chdir(tmp_path)
    refused = runner.invoke(app, command).exception
    assert isinstance(refused, TokcError)
    assert "--reference MODEL" in str(refused)
