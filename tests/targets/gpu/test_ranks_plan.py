"""Whole artifacts for several GPUs: every rank's plan in the interpreter, memory handed on between them."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.runtime.gpu_ranks import RankInterpreter, host_ranks
from tests.targets.gpu.interpreted import products_in_order
from tests.targets.gpu.test_whole_plan import CONTEXT, PROMPTS, Case
from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.compiler import Build, Request, build, precision
from tokc.cost.step_model import Step
from tokc.errors import ArtifactRefused, RequestRefused, TargetRefused, TokcError
from tokc.importers import import_model
from tokc.pipeline import Pipeline
from tokc.report.prediction import machine_for, model_of
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.gpu_ranks import GpuRanks
from tokc.targets.base import Limits
from tokc.targets.gpu.codegen import Compiled
from tokc.targets.gpu.device import Architecture
from tokc.targets.gpu.emit_ranks import emit_ranks
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.resources import Resources
from tokc.targets.gpu.target import CUDA

SIZES = {"head_dim": 32, "intermediate_size": 128, "num_hidden_layers": 1}


def opened(built: Build, ranks: int = 2) -> GpuRanks:
    """Return an executor of ranks whose kernels run in the interpreter."""
    _, kernels, _, _ = emit_ranks(built.program, "sm_80", Limits(context=CONTEXT), ranks)
    drivers = [RankInterpreter({kernel.symbol: kernel for kernel in kernels}) for _ in range(ranks)]
    return GpuRanks(Artifact.open(built.artifact), drivers, host_ranks(drivers), kv_bytes=ranks << 20)


def nothing_compiled(kernels: Sequence[Kernel], arch: Architecture) -> tuple[Compiled, ...]:
    """Return kernels without code: here their sources run, and other tests compile them."""
    used = Resources(32, 0, 0, 1, 1, 1, 1, occupancy=1.0)
    files = {"cubin": b"\x7fELF", "ptx": b".target sm_80\n"}
    return tuple(
        Compiled(each.symbol, each.symbol, 4, 128, tuple(dtype for _, dtype in each.args), 2, files, used)
        for each in kernels
    )


def built_for(ranks: int, family: str, folder: Path, weights: str = "int4", **changes: object) -> Build:
    model = tiny_folder(family, folder / family, **{**SIZES, **changes})
    target = f"cuda:sm_80-{ranks}"
    asked = Request(model, target=target, precision=precision(weights, "f16"), context=CONTEXT, check=False)
    return build(asked, folder / "model.tokc")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Build:
    with patch("tokc.targets.gpu.target.compile_kernels", nothing_compiled):
        return built_for(2, "llama", tmp_path_factory.mktemp("ranks"))


def test_two_ranks_give_the_programs_tokens(llama: Build) -> None:
    made: list[GpuRanks] = []

    def watched(built: Build) -> GpuRanks:
        made.append(opened(built))
        return made[-1]

    case = Case(llama, 0.02, watched)  # type: ignore[arg-type]
    case.require_the_programs_tokens(PROMPTS, 2)
    first, second = made[0]._communicators
    assert first.moved == second.moved
    # A wide step of 22 tokens, then narrow ones of 2: each sums twice and joins the logits of 2 rows.
    wide = [("exchange", 22 * 32 * 4), ("all_gather", 22 * 32 * 4)] * 2 + [("all_gather", 2 * 48 * 4)]
    narrow = [("all_gather", 2 * 64 * 4)] * 2 + [("all_gather", 2 * 48 * 4)]
    assert first.moved == wide + 2 * narrow
    assert all(communicator.closed for communicator in (first, second))


@pytest.mark.slow
def test_the_chunk_and_the_company_change_no_bit_over_ranks(llama: Build) -> None:
    with products_in_order():
        Case(llama, 0.02, opened).require_the_same_bits_alone(1)  # type: ignore[arg-type]


def test_a_rank_that_fails_is_named_and_no_other_waits_for_it(llama: Build) -> None:
    executor = opened(llama)
    drivers = [rank.driver for rank in executor._ranks]
    drivers[1].fail_at = 9  # type: ignore[attr-defined]
    span = np.arange(3, dtype=np.int32)
    batch = Batch(span, span, np.zeros_like(span), np.arange(4, dtype=np.int32)[None], span[-1:])
    with pytest.raises(TokcError, match=r"launch of '.*' failed"):
        executor.step(batch)
    with pytest.raises(TokcError, match="failed in an earlier step"):
        executor.step(batch)
    executor.close()
    assert [driver.alive() for driver in drivers] == [{}, {}]  # type: ignore[attr-defined]


def test_what_exceeds_the_limits_is_refused_and_the_next_step_runs(llama: Build) -> None:
    executor = opened(llama)
    many = np.zeros(513, np.int32)
    tables = np.arange(4, dtype=np.int32)[None]
    with pytest.raises(RequestRefused, match="513 tokens"):
        executor.step(Batch(many, many, many, tables, many[:1]))
    one = many[:1]
    assert executor.step(Batch(one, one, one, tables, one)).copy().shape == (1, 96)
    executor.close()


def test_a_rank_without_room_refuses_for_all(llama: Build) -> None:
    drivers = [RankInterpreter({}), RankInterpreter({}, memory_bytes=1 << 19)]
    with pytest.raises(ArtifactRefused, match=r"bytes of the device's memory|does not fit"):
        GpuRanks(Artifact.open(llama.artifact), drivers, host_ranks(drivers))
    assert [driver.alive() for driver in drivers] == [{}, {}]


def test_each_rank_has_its_part_of_the_weights_and_they_share_the_rest(llama: Build) -> None:
    files = json.loads((llama.artifact / "manifest.json").read_text())["files"]
    own = [files[f"rank-{rank}.safetensors"] for rank in range(2)]
    assert own[0]["bytes"] == own[1]["bytes"]
    assert own[0]["sha256"] != own[1]["sha256"]
    plan = json.loads((llama.artifact / "plan.json").read_text())
    assert plan["ranks"] == 2
    names = Counter(launch.get("collective") for launch in plan["launches"])
    assert names["exchange"] == 2
    assert names["all_gather"] == 5


def test_inspect_and_report_show_ranks_collectives_and_the_time_of_links(llama: Build) -> None:
    said = CliRunner().invoke(app, ["inspect", str(llama.artifact)], env={"COLUMNS": "200"}).stdout
    assert "2 devices, one rank each" in said
    # Two sums of 64 numbers and half of 96 logits leave a rank for the other.
    assert "a narrow step 3 all-gather: 0.512 kB a token and 0.192 kB a row of logits leave each" in said
    assert "a wide step 3 all-gather, 2 exchange: 0.512 kB a token" in said
    assert "memory handed on by a transport on the host" in " ".join(said.split())
    machine = machine_for(llama.artifact, None)
    assert machine.name == "2 x a100-sxm-80gb"
    model = model_of(llama.artifact, machine)
    chunk = model.time_by_kind(Step(1, 64, 64))
    assert chunk["Exchange"] == pytest.approx(2 * (1.3e-6 + 64 * 32 * 4 / 300e9))
    assert chunk["AllGather"] == pytest.approx(3 * 1.3e-6 + (2 * 64 * 32 * 4 + 48 * 4) / 300e9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "weights", "ranks", "changes"),
    [
        ("llama_bias", "f16", 2, {}),
        ("qwen3", "int8", 4, {"num_attention_heads": 8, "num_key_value_heads": 4}),
        ("qwen2_moe", "int8", 2, {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}),
        ("mixtral", "int4", 2, {}),
    ],
)
def test_every_kind_of_layer_is_cut(
    family: str, weights: str, ranks: int, changes: dict[str, object], tmp_path: Path
) -> None:
    made = built_for(ranks, family, tmp_path, weights, **changes)
    Case(made, 0.03, lambda built: opened(built, ranks)).require_the_programs_tokens(PROMPTS, 2)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("changes", "count", "said", "able"),
    [
        ({}, 4, "2 heads of keys and values cannot be cut over 4 devices", "it can be cut over 2"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, 2, "3 heads cannot be cut", "over 3"),
        ({"intermediate_size": 96}, 2, "in multiples of 32", "it runs on one device"),
    ],
)
def test_what_cannot_be_dealt_out_evenly_is_refused_with_the_counts_that_can(
    changes: dict[str, object], count: int, said: str, able: str, tmp_path: Path
) -> None:
    sizes = {**SIZES, **changes}
    if sizes["num_hidden_layers"] and changes.get("num_attention_heads") == 3:
        sizes |= {"hidden_size": 96, "intermediate_size": 192}
    model = tiny_folder("llama", tmp_path / "model", **sizes)
    passes = Pipeline.parse(CUDA.pipeline(precision("int4", "f16")))
    program = passes.run(import_model(model, context=CONTEXT))
    with pytest.raises(TargetRefused, match=said) as refused:
        emit_ranks(program, "sm_80", Limits(context=CONTEXT), count)
    assert able in (refused.value.hint or "")
