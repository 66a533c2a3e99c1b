"""The schedule of the linear kernels: it changes no bit, is searched, kept, and used by builds."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.runtime.small_artifact import write_small_artifact
from tests.targets.cpu.chunks import answers
from tests.targets.cpu.linear_cases import cases
from tests.targets.cpu.test_linear_kernels import Run, caller
from tests.targets.cpu.test_linear_kernels import run as run
from tests.tiny_models import tiny_folder
from tokc.artifact.build_cache import key_of
from tokc.artifact.writer import canonical_json
from tokc.cli.app import app
from tokc.compiler import Request, build
from tokc.errors import TargetRefused, TokcError, UnknownOption
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.manifest import Manifest
from tokc.targets.cpu import tuning
from tokc.targets.cpu.isa import Isa, host_isa
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import DEFAULT_SCHEDULE, QuantLinear, Schedule
from tokc.targets.cpu.kernels.rms_norm import RmsNorm
from tokc.targets.cpu.schedules import Tuned, kept_schedule, scheduled
from tokc.targets.cpu.tuning import Candidate, isa_to_tune, search
from tokc.user_cache import cache_folder

SMALL = {"shapes": ((64, 96),), "rounds": 1, "weight_bytes": 1 << 20}
CHOSEN = Schedule(ahead_bytes=4096, tiles_at_once=2, block_rows=8)
LINEAR = QuantLinear(host_isa(), 64, 96, 4, symmetric=True, bias=False, y_stride=64)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep schedules apart from the user's; the linker's cache is shared, since it takes a minute to make."""
    linkers, own = cache_folder() / "zig", tmp_path / "cache" / "tokc"
    linkers.mkdir(parents=True, exist_ok=True)
    own.mkdir(parents=True)
    (own / "zig").symlink_to(linkers)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own.parent))


@pytest.mark.slow
def test_a_search_yields_every_choice_and_ends_with_one_of_the_candidates() -> None:
    stages = list(search(host_isa(), threads=2, **SMALL))
    assert [stage.choice for stage in stages] == ["ahead_bytes", "tiles_at_once", "block_rows"]
    found = stages[-1].tuned
    assert found.threads == 2
    assert found.schedule.ahead_bytes in tuning.AHEAD_BYTES
    assert found.schedule.block_rows in tuning.BLOCK_ROWS
    for stage in stages:
        ratios = dict(stage.ratios)
        assert ratios[getattr(DEFAULT_SCHEDULE, stage.choice)] == 1.0
        chosen = getattr(stage.tuned.schedule, stage.choice)
        assert chosen == getattr(DEFAULT_SCHEDULE, stage.choice) or ratios[chosen] < 1 - tuning.MARGIN


@pytest.mark.parametrize("isa", [host_isa().name], indirect=True)
def test_a_schedule_changes_no_bit(run: Run, load_kernels: Any, isa: Isa, align: Any) -> None:
    case = next(case for case in cases(isa) if getattr(case.kernel, "narrow_scales", False))
    facts = {name: getattr(case.kernel, name) for name in case.kernel.__dataclass_fields__}
    other = Candidate(**facts | {"schedule": Schedule(ahead_bytes=4096, tiles_at_once=2, block_rows=16)})
    changed = caller(load_kernels([other], isa), align)
    for first, last in ((0, 37), (0, 17), (0, 15), (4, 11), (5, 6)):
        found = changed(replace(case, kernel=other), first, last, threads=2)
        assert (found == run(case, first, last)).all(), (first, last)


def test_what_is_kept_is_used_on_this_machine_alone() -> None:
    assert kept_schedule("avx512-vnni", 2) == DEFAULT_SCHEDULE
    replace(Tuned.here("avx512-vnni", 2), schedule=CHOSEN).write()
    assert kept_schedule("avx512-vnni", 2) == CHOSEN
    assert kept_schedule("avx512-vnni", 3) == DEFAULT_SCHEDULE
    assert kept_schedule("avx-vnni", 2) == DEFAULT_SCHEDULE
    replace(Tuned.here("avx512-vnni", 2), cpu="another", schedule=Schedule()).write()
    assert kept_schedule("avx512-vnni", 2) == CHOSEN


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1, "schedule": {"ahead_bytes": 0}}'])
def test_a_damaged_schedule_is_named(text: str) -> None:
    tuned = Tuned.here("avx512-vnni")
    tuned.write()
    tuned.path.write_text(text)
    with pytest.raises(TokcError, match="schedule in the user's cache is damaged") as refused:
        kept_schedule("avx512-vnni")
    assert str(tuned.path) in str(refused.value)


def test_linear_kernels_have_a_schedule_and_keep_their_symbol() -> None:
    for kernel in (LINEAR, MoeLinear(LINEAR, 3)):
        changed = scheduled(kernel, CHOSEN)
        assert changed != kernel
        assert changed.symbol == kernel.symbol
    norm = RmsNorm(host_isa(), 64, 64, 1e-5, add=False, quantize=True, keep_float=False)
    assert scheduled(norm, CHOSEN) is norm


def test_a_schedule_is_part_of_a_builds_key_for_cpus(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")

    def keys() -> tuple[str, str]:
        cpu, cuda = (key_of(model, {"target": target}, "m") for target in ("cpu", "cuda:sm_90"))
        return cpu, cuda

    before = keys()
    replace(Tuned.here("avx512-vnni"), schedule=CHOSEN).write()
    after = keys()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_the_command_keeps_each_choice_and_an_interrupt_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = replace(Tuned.here(host_isa().name), schedule=replace(DEFAULT_SCHEDULE, ahead_bytes=4096))
    stage = tuning.Stage("ahead_bytes", tuned, ((4096, 0.9), (12288, 1.0)))

    def interrupted(*_: object, **__: object):  # type: ignore[no-untyped-def]
        yield stage
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "search", interrupted)
    result = CliRunner().invoke(app, ["tune-kernels", "--json"])
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["stages"][0]["ratios"][0] == {"value": 4096, "of_default": 0.9}
    assert Path(said["file"]).is_file()
    assert kept_schedule(host_isa().name).ahead_bytes == 4096


def test_only_what_this_machine_runs_is_tuned() -> None:
    assert isa_to_tune("cpu") == host_isa()
    for target in ("cuda:sm_90", "cpu:neoverse-n1"):
        with pytest.raises(TargetRefused, match="choose"):
            isa_to_tune(target)
    with pytest.raises(UnknownOption):
        isa_to_tune("cpu:none")


def test_a_manifest_states_a_schedule_that_is_not_the_default(tmp_path: Path) -> None:
    usual = Artifact.open(write_small_artifact(tmp_path / "a.tokc"), verify=False).manifest
    tuned = usual._replace(target=usual.target._replace(schedule=asdict(CHOSEN)))
    assert Manifest.parse(canonical_json(tuned.to_json())) == tuned
    assert b"schedule" not in canonical_json({"target": usual.to_json()["target"]})


@pytest.mark.slow
def test_a_build_takes_the_schedule_states_it_and_answers_the_same(tmp_path: Path) -> None:
    request = Request(tiny_folder("llama", tmp_path / "llama", head_dim=32), context=64, check=False)
    usual = build(request, tmp_path / "usual" / "m.tokc").artifact
    replace(Tuned.here(host_isa().name), schedule=CHOSEN).write()
    tuned, again = (build(request, tmp_path / name / "m.tokc").artifact for name in ("tuned", "again"))
    assert Artifact.open(tuned).manifest.target.schedule == asdict(CHOSEN)
    assert (tuned / "manifest.json").read_bytes() == (again / "manifest.json").read_bytes()
    assert (tuned / "kernels/step.so").read_bytes() != (usual / "kernels/step.so").read_bytes()
    found = []
    for artifact in (usual, tuned):
        executor = CpuExecutor.open(Artifact.open(artifact), threads=2)
        found += [answers(executor, np.arange(40) % 50, chunk) for chunk in (40, 9)]
        executor.close()
    assert all((each == found[0]).all() for each in found)
