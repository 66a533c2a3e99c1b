"""A pass that is deliberately broken is found by name, and in it the op."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from tests.passes.tiny import tiny_program
from tests.tiny_models import tiny_folder
from tokc.bisect import Guilty, bisect
from tokc.cli.app import app
from tokc.importers import import_model
from tokc.ir import text
from tokc.ir.program import Program
from tokc.pipeline import Pipeline

FUSE = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up"
AFTER = "quantize-weights{bits=8},fuse-add-rms-norm,kv-layout{page=16 dtype=f32}"


@dataclass(frozen=True)
class Broken:
    """Change one node, or what it reads, of a program that is otherwise left alone."""

    name: ClassVar[str] = "broken"
    exact: ClassVar[bool] = True
    damage: str

    def run(self, program: Program) -> Program:
        copy = program.copy()
        DAMAGES[self.damage](copy.graph)
        return copy


def scale_a_weight(graph: ir.Graph) -> None:
    """Double one row of the output projection of the second layer."""
    value = graph.initializers["model.layers.1.self_attn.o_proj.weight"]
    assert value.const_value is not None
    weight = value.const_value.numpy().copy()
    weight[3] *= np.float32(2)
    value.const_value = ir.tensor(weight, name=value.name)


def another_epsilon(graph: ir.Graph) -> None:
    """Give the third norm another epsilon."""
    norm = [node for node in graph if node.op_type == "RMSNormalization"][2]
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.5)


def another_op(graph: ir.Graph) -> None:
    """Make the gate of the first layer another function."""
    gate = next(node for node in graph if node.op_type == "GatedActivation")
    gate.attributes["activation"] = ir.AttrString("activation", "gelu_tanh")


def nonsense(graph: ir.Graph) -> None:
    """Name an op that does not exist."""
    next(node for node in graph if node.op_type == "GatedActivation").op_type = "Nonsense"


DAMAGES: dict[str, Callable[[ir.Graph], None]] = {
    damage.__name__: damage for damage in (scale_a_weight, another_epsilon, another_op, nonsense)
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return import_model(tiny_folder("smollm2", tmp_path_factory.mktemp("models") / "tiny"))


def found(program: Program, folder: Path, *passes: object) -> Guilty | None:
    return bisect(program, Pipeline(tuple(passes)), folder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "op"),
    [
        ("scale_a_weight", "Linear"),
        ("another_epsilon", "RMSNormalization"),
        ("another_op", "GatedActivation"),
    ],
)
def test_a_broken_pass_is_found_by_name_and_in_it_the_op(
    program: Program, tmp_path: Path, damage: str, op: str
) -> None:
    before, after = (Pipeline.parse(spec).passes for spec in (FUSE, AFTER))
    broken = Broken(damage)
    pipeline = (*before, broken, *after)
    guilty = found(program, tmp_path, *pipeline)
    assert guilty is not None
    assert (guilty.number, guilty.total) == (len(before) + 1, len(pipeline))
    assert guilty.pass_spec == f"broken{{damage={damage}}}"
    assert "changed the answers" in guilty.problem
    assert guilty.op is not None
    assert guilty.op.op == op
    made = Pipeline(before).run(program)
    assert guilty.op.value == expected_value(damage, made)
    assert text.render(text.load_dump(tmp_path / "before.onnx")) == text.render(made)


def expected_value(damage: str, program: Program) -> str:
    """Return the output of the node that the damage is to."""
    nodes = list(program.graph)
    if damage == "scale_a_weight":
        weight = "model.layers.1.self_attn.o_proj.weight"
        node = next(
            node for node in nodes if any(one is not None and one.name == weight for one in node.inputs)
        )
    elif damage == "another_epsilon":
        node = [node for node in nodes if node.op_type == "RMSNormalization"][2]
    else:
        node = next(node for node in nodes if node.op_type == "GatedActivation")
    return str(node.outputs[0].name)


def test_a_pipeline_that_keeps_its_promises_has_no_guilty_pass(program: Program, tmp_path: Path) -> None:
    assert found(program, tmp_path / "repro", *Pipeline.parse(f"{FUSE},{AFTER}").passes) is None
    assert not (tmp_path / "repro").exists()


def test_a_bound_of_ones_own_names_the_lossy_pass(program: Program, tmp_path: Path) -> None:
    guilty = bisect(program, Pipeline.parse(f"{FUSE},{AFTER}"), tmp_path, max_kl=1e-9)
    assert guilty is not None
    assert guilty.pass_spec.startswith("quantize-weights{bits=8 ")
    assert guilty.op is not None
    assert guilty.op.op in {"QuantLinear", "QuantEmbedding"}


def test_a_program_that_breaks_the_rules_is_found_without_running_it(tmp_path: Path) -> None:
    guilty = found(tiny_program(), tmp_path, Broken("nonsense"))
    assert guilty is not None
    assert "broke the program" in guilty.problem
    assert guilty.op is None


def test_the_command_prints_the_pass_and_a_repro_that_runs(tmp_path: Path) -> None:
    folder = tiny_folder("smollm2", tmp_path / "tiny")
    runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
    passes = f"{FUSE},{AFTER}"
    command = ["verify", str(folder), "--bisect", "--passes", passes, "--repro", str(tmp_path / "repro")]
    clean = runner.invoke(app, command, catch_exceptions=False)
    assert "9 passes, each as near to the program before it as it promises" in clean.stdout
    result = runner.invoke(app, [*command, "--max-kl", "1e-9"])
    assert result.exit_code == 1
    assert "pass 7 of 9, quantize-weights{bits=8" in str(result.exception)
    (repro,) = [line for line in str(result.exception).splitlines() if "tokc opt" in line]
    again = runner.invoke(app, shlex.split(repro.partition("tokc ")[2]), catch_exceptions=False)
    assert again.exit_code == 0
    assert (tmp_path / "repro" / "after.onnx").exists()
