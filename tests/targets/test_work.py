"""The counted work of every launch of a small model, against counting by hand and the program's own."""

from pathlib import Path

import pytest

from tests.tiny_models import tiny_folder
from tokc.cost.launch_work import LaunchWork
from tokc.importers import import_model
from tokc.ir.ops import program_cost
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.targets.base import Precision
from tokc.targets.cpu.emit import emit
from tokc.targets.cpu.isa import ISAS
from tokc.targets.cpu.target import TARGET
from tokc.targets.plan import Launch, Plan

LIMITS = {"tokens": 16, "rows": 4, "seqs": 4, "blocks": 4, "context": 64}
HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCAB = 64, 96, 4, 2, 32, 96
QUERY = HEADS * DIM
# one int8 element of an activation, with its share of the scale and of the sum of its group of 32
QUANT_BYTES = 1 + 8 / 32


def lowered(family: str, folder: Path, precision: Precision) -> tuple[Program, Plan]:
    model = tiny_folder(family, folder / family, head_dim=DIM, num_hidden_layers=1)
    program = Pipeline.parse(TARGET.pipeline(precision)).run(import_model(model, context=64))
    plan, _, _ = emit(program, ISAS["avx512-vnni"], LIMITS)
    return program, plan


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return lowered("llama", tmp_path_factory.mktemp("model"), Precision("int4", kv="f16"))[1]


def only(plan: Plan, op: str) -> Launch:
    (launch,) = (launch for launch in plan.launches if launch.op == op)
    return launch


def packed_bytes(plan: Plan, launch: Launch) -> int:
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    touched = (buffers[operand.buffer] for operand in launch.operands)
    return sum(buffer.bytes({}) for buffer in touched if buffer.space == "weights")


def test_a_projection_reads_its_packed_weight_once_and_multiplies_int8(int4: Plan) -> None:
    launches = [launch for launch in int4.launches if launch.op == "QuantLinear"]
    assert all(launch.work.arithmetic == "int8" for launch in launches)
    assert all(launch.work.whole_bytes == packed_bytes(int4, launch) for launch in launches)
    down = next(launch for launch in launches if f"{HIDDEN}x{INNER}" in launch.kernel)
    assert down.work.row_flops == 2 * HIDDEN * INNER
    assert down.work.row_bytes == INNER * QUANT_BYTES + 4 * HIDDEN
    assert down.work.attended_flops == down.work.cached_bytes == 0


def test_attention_grows_with_what_it_attends_to(int4: Plan) -> None:
    work = only(int4, "PagedAttention").work
    assert work.row_flops == work.whole_bytes == 0
    assert work.attended_flops == 4 * QUERY
    assert work.cached_bytes == 2 * KV_HEADS * DIM * 2
    assert work.arithmetic == "f32"


def test_the_cache_is_written_a_row_and_not_read_by_rope(int4: Plan) -> None:
    work = only(int4, "RopeWriteKV").work
    entries, projected = 2 * KV_HEADS * DIM * 2, 4 * (QUERY + 2 * KV_HEADS * DIM)
    places = 2 * 4  # a position and a sequence
    assert work.row_bytes == projected + 4 * QUERY + entries + places
    assert work.cached_bytes == work.whole_bytes == 0


def test_a_table_is_not_read_whole(int4: Plan) -> None:
    work = only(int4, "QuantEmbedding").work
    assert (work.whole_bytes, work.row_bytes) == (0, 4 + 4 * HIDDEN)


def test_converting_counts_no_flops(int4: Plan) -> None:
    work = only(int4, "Quantize").work
    assert work.row_flops == 0
    assert work.row_bytes == HIDDEN * (4 + QUANT_BYTES)


def test_a_window_bounds_what_is_attended_to(tmp_path: Path) -> None:
    _, plan = lowered("mistral", tmp_path, Precision("int4", kv="f16"))
    assert only(plan, "PagedAttention").work.window == 6


@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (3, 40)])
def test_the_launches_flops_are_the_programs(tmp_path: Path, tokens: int, context: int) -> None:
    program, plan = lowered("llama", tmp_path, Precision("f32", kv="f32"))
    counted = sum(launch.work.flops(tokens, tokens * context) for launch in plan.launches)
    assert counted == pytest.approx(program_cost(program, tokens, context).flops)


def test_the_plans_json_gives_the_work_back(int4: Plan) -> None:
    stated = int4.to_json()["launches"]
    assert isinstance(stated, list)
    for launch, given in zip(int4.launches, stated, strict=True):
        assert LaunchWork.from_json(given["work"]) == launch.work
        assert all(given["work"].values()), "defaults are left out"


def test_experts_are_computed_where_chosen_and_read_once_a_step(tmp_path: Path) -> None:
    _, plan = lowered("mixtral", tmp_path, Precision("int4", kv="f16"))
    launches = [launch for launch in plan.launches if launch.op == "QuantMoeLinear"]
    product = 2 * 2 * HIDDEN * INNER
    assert [launch.work.row_flops for launch in launches] == [2 * product, product]
    for launch in launches:
        whole = packed_bytes(plan, launch)
        assert launch.work.whole_bytes == whole
        assert launch.work.memory_bytes(1, cached=0) == pytest.approx(whole * 2 / 5)
        assert launch.work.memory_bytes(2, cached=0) == pytest.approx(whole * (1 - 0.6**2))
        assert LaunchWork.from_json(launch.work.to_json()) == launch.work
