"""Lowering to a Plan: the launches of a small model, and what is refused."""

import os
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.tiny_models import tiny_folder
from tokc.errors import TargetRefused
from tokc.importers import import_model
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.targets.base import Precision
from tokc.targets.cpu.emit import emit
from tokc.targets.cpu.isa import ISAS
from tokc.targets.cpu.target import TARGET
from tokc.targets.memory import overlapping, plan_memory
from tokc.targets.plan import Plan

GOLDEN = Path(__file__).parents[2] / "golden"
LIMITS = {"tokens": 16, "rows": 4, "seqs": 4, "blocks": 4, "context": 64}
PRECISIONS = {
    "int4": Precision("int4", kv="f16"),
    "int8_kv": Precision("int4", kv="int8"),
    "f32": Precision("f32", kv="f32"),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """Return a one-layer Llama after the default passes, at each precision."""
    folder = tiny_folder(
        "llama", tmp_path_factory.mktemp("models") / "llama", head_dim=32, num_hidden_layers=1
    )
    imported = import_model(folder, context=64)
    return {name: Pipeline.parse(TARGET.pipeline(p)).run(imported) for name, p in PRECISIONS.items()}


def lowered(program: Program) -> Plan:
    plan, _, _ = emit(program, ISAS["avx512-vnni"], LIMITS)
    return plan_memory(plan)


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_plan_of_one_layer_is_the_golden_one(name: str, programs: dict[str, Program]) -> None:
    """Write it anew with TOKC_UPDATE_GOLDEN=1 and read the difference."""
    path, text = GOLDEN / f"plan_llama_{name}.txt", str(lowered(programs[name]))
    if os.environ.get("TOKC_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", PRECISIONS)
def test_live_buffers_never_overlap(name: str, programs: dict[str, Program]) -> None:
    assert overlapping(lowered(programs[name])) == []


def test_the_same_program_gives_the_same_plan(programs: dict[str, Program]) -> None:
    assert lowered(programs["int4"]).to_json() == lowered(programs["int4"]).to_json()


def test_queries_keys_and_values_are_views_of_one_projection(programs: dict[str, Program]) -> None:
    plan = lowered(programs["int4"])
    (rope,) = (launch for launch in plan.launches if launch.op == "RopeWriteKV")
    q, k, v = rope.operands[:3]
    assert q.buffer == k.buffer == v.buffer
    assert (q.offset, k.offset, v.offset) == (0, 4 * 32 * 4, 6 * 32 * 4)


def test_the_cache_is_updated_in_place(programs: dict[str, Program]) -> None:
    plan = lowered(programs["int4"])
    buffers = {buffer.name for buffer in plan.buffers if buffer.space == "kv"}
    assert buffers == {"kv.0.key", "kv.0.value"}


def test_int8_activations_are_made_by_the_kernels_before_them(programs: dict[str, Program]) -> None:
    """Only the gathered rows before the vocabulary projection need a launch of their own."""
    plan = lowered(programs["int4"])
    assert [launch.op for launch in plan.launches].count("Quantize") == 1


def test_a_program_in_batch_form_is_refused(tmp_path: Path) -> None:
    program = import_model(tiny_folder("llama", tmp_path / "m", head_dim=32), context=64)
    with pytest.raises(TargetRefused, match="ragged"):
        emit(program, ISAS["avx512-vnni"], LIMITS)


def test_a_node_without_a_kernel_is_refused_by_name(programs: dict[str, Program]) -> None:
    program = programs["f32"].copy()
    last = program.graph[-1]
    node = ir.Node("", "Erf", [last.outputs[0]], name="odd_one")
    program.graph.append(node)
    with pytest.raises(TargetRefused, match="Erf") as refusal:
        emit(program, ISAS["avx512-vnni"], LIMITS)
    assert "odd_one" in str(refusal.value)


def test_unquantized_activations_over_quantized_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "m", head_dim=32, num_hidden_layers=1)
    text = TARGET.pipeline(Precision("int4")).replace("bits=4", "bits=4 act_group=0")
    program = Pipeline.parse(text).run(import_model(folder, context=64))
    with pytest.raises(TargetRefused, match="act_group=0"):
        emit(program, ISAS["avx512-vnni"], LIMITS)


def test_columns_that_do_not_fill_groups_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "m", head_dim=32, num_hidden_layers=1, intermediate_size=80)
    program = Pipeline.parse(TARGET.pipeline(Precision("int4"))).run(import_model(folder, context=64))
    with pytest.raises(TargetRefused, match="multiple of 32"):
        emit(program, ISAS["avx512-vnni"], LIMITS)
