"""Steps as plain StableHLO."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jax._src.interpreters import mlir
from jax._src.lib.mlir.dialects import hlo as stablehlo
from typer.testing import CliRunner

from tests.tiny_models import tiny_folder
from tokc import compiler
from tokc.cli.app import app
from tokc.errors import TargetRefused, UnknownOption
from tokc.runtime.safetensors import map_file
from tokc.targets.base import Precision
from tokc.targets.tpu.export import export_stablehlo

MLIR_NAMES = {"float32": "f32", "float16": "f16", "int8": "i8", "int32": "i32", "uint8": "ui8"}
PORTABLE = b"ML\xefR"  # the first bytes of MLIR's bytecode


def parameters(code: bytes) -> list[str]:
    """Return the types of the main function's parameters, as the portable artifact has them."""
    with mlir.make_ir_context() as context:
        text = str(stablehlo.deserialize_portable_artifact(context, code))
    head = next(line for line in text.splitlines() if "@main(" in line)
    return re.findall(r"%arg\d+: tensor<([^>]*)>", head)


def tensor_type(argument: dict[str, Any]) -> str:
    return "x".join([*map(str, argument["shape"]), MLIR_NAMES[argument["dtype"]]])


def test_an_artifact_is_inspected_and_exported_with_its_weights_and_signatures(tmp_path: Path) -> None:
    model = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    request = compiler.Request(model, target="xla:cpu", precision=Precision("int8", 32, "f32"), check=False)
    artifact = compiler.build(request, tmp_path / "m.tokc").artifact
    shown = CliRunner().invoke(app, ["inspect", str(artifact)])
    assert shown.exit_code == 0, shown.output
    assert "step_512x64.stablehlo" in shown.output
    assert "XLA compiles them when the artifact is loaded" in " ".join(shown.output.split())
    planless = CliRunner().invoke(app, ["inspect", "--plan", str(artifact)])
    assert "no plan of launches" in str(planless.exception)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(artifact), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert str(out / "step_1x1.mlirbc") in json.loads(result.stdout)
    code = (out / "step_16x16.mlirbc").read_bytes()
    assert code.startswith(PORTABLE)
    signature = json.loads((out / "signature.json").read_text())["step_16x16"]
    shapes = {each["name"]: each["shape"] for each in signature["arguments"]}
    assert shapes["kv.0"] == [9, 16, 4, 16], "one context of 128 tokens, and the scratch page"
    assert shapes["input_ids"] == [16]
    weights = map_file(out / "model.safetensors")
    for name, array in weights.items():
        if not name.startswith("padding"):
            assert list(array.shape) == shapes[name]
    assert signature["results"][0]["shape"] == [16, 96]
    assert parameters(code) == [tensor_type(each) for each in signature["arguments"]]


def test_another_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetRefused, match="holds no StableHLO"):
        export_stablehlo(tmp_path, tmp_path / "out")


def test_an_unknown_format_lists_the_known() -> None:
    result = CliRunner().invoke(app, ["export", "model", "--to", "coreml"])
    assert isinstance(result.exception, UnknownOption)
    assert "stablehlo" in str(result.exception)
