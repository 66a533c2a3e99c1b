"""Whether a model fits a topology, by its bytes, and what is said if not."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.targets.tpu.programs import tiny_program
from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.targets.base import Limits, Precision
from tokc.targets.tpu import fit, target, topologies
from tokc.targets.tpu.describe import describe, tpu_platform
from tokc.targets.tpu.step import Bucket, Step
from tokc.targets.tpu.topologies import GENERATIONS, TOPOLOGIES, topology_here

F16 = Precision("f16", 32, "f16")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return tiny_program(tmp_path, F16, num_key_value_heads=4)


def step_of(program: Program, chips: int, context: int = 64) -> Step:
    platform = tpu_platform(chips)
    return describe(program, platform, context, (Bucket(1, 1),)).step


def test_a_chip_holds_its_share_of_matrices_and_all_of_the_rest(program: Program) -> None:
    whole, cut = (fit.chip_bytes(step_of(program, chips)) for chips in (1, 4))
    matrices = 2 * (2 * 96 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 96))
    others = 4 * (5 * 64 + 2 * 128 * 8)  # norms of two layers and the last, and the rope's tables
    assert whole[0] == matrices + others
    assert cut[0] == matrices // 4 + others
    assert whole[1] == 2 * 16 * 2 * 4 * 128 * 2
    assert cut[1] == whole[1] // 4


def test_the_cache_takes_what_is_left_and_no_more_than_64_contexts(program: Program) -> None:
    step, topology = step_of(program, 1), TOPOLOGIES["v5e-1"]
    assert fit.fit_of(step, topology).pages == 64 * step.cache.blocks - 1
    weights, page = fit.chip_bytes(step)
    room = int((weights + 10 * page + fit.TEMPORARIES) / fit.USABLE) + 1
    small = replace(topology, generation=replace(topology.generation, hbm_bytes=room))
    assert fit.fit_of(step, small).pages == 9, "one of ten pages is scratch"


def test_what_does_not_fit_names_its_size_and_the_smallest_with_room(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "TEMPORARIES", 0)
    step = step_of(program, 1, 128)
    need = sum(fit.chip_bytes(step)) + step.cache.page_bytes * step.cache.blocks
    small = replace(GENERATIONS["v5e"], hbm_bytes=int(need * 0.7 / fit.USABLE))
    known = {name: replace(TOPOLOGIES[name], generation=small) for name in ("v5e-1", "v5e-4", "v5e-8")}
    monkeypatch.setattr(fit, "TOPOLOGIES", known)
    monkeypatch.setattr(target, "TOPOLOGIES", known)
    with pytest.raises(TargetRefused) as refused:
        target.lower_tpu(program, "v5e-1", Limits(context=128))
    text = str(refused.value)
    assert "does not fit 'v5e-1'" in text
    assert "GB of weights" in text
    assert "'v5e-4'" in text


def test_where_nothing_fits_that_is_said(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"v5e-1": replace(TOPOLOGIES["v5e-1"], generation=replace(GENERATIONS["v5e"], hbm_bytes=1))}
    monkeypatch.setattr(fit, "TOPOLOGIES", known)
    monkeypatch.setattr(target, "TOPOLOGIES", known)
    with pytest.raises(TargetRefused, match="does not fit") as refused:
        target.lower_tpu(program, "v5e-1", Limits(context=128))
    assert "no topology that is known has room" in str(refused.value)


def test_topologies_have_the_names_of_their_makers() -> None:
    names = {name: topology.libtpu_name for name, topology in TOPOLOGIES.items()}
    assert names["v5e-8"] == "v5e:2x4"
    assert names["v5p-8"] == "v5p:2x2x1", "v5p counts cores, two a chip"
    assert TOPOLOGIES["v5p-8"].chips == 4
    assert TOPOLOGIES["v6e-1"].host_bounds == (1, 1, 1)


def test_chips_are_found_by_their_pci_ids(tmp_path: Path) -> None:
    def add(name: str, vendor: str, device: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "device").write_text(f"{device}\n")

    add("0", "0x8086", "0x0063")
    assert topology_here(tmp_path) is None
    for index in range(1, 5):
        add(str(index), topologies.GOOGLE, "0x0063")
    found = topology_here(tmp_path)
    assert found is not None
    assert found.name == "v5e-4"


def test_the_smallest_with_room_is_so_by_memory_not_by_name(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One v6e has more memory than one v5e and less than four, and is listed after them."""
    tiny = {name: replace(one, hbm_bytes=one.hbm_bytes >> 30) for name, one in GENERATIONS.items()}
    known = {n: replace(one, generation=tiny[one.generation.name]) for n, one in TOPOLOGIES.items()}
    monkeypatch.setattr(fit, "TEMPORARIES", 0)
    monkeypatch.setattr(fit, "TOPOLOGIES", known)
    step = step_of(program, 1, 128)
    need = fit.chip_bytes(step)[0] + step.cache.page_bytes * (step.cache.blocks + 1)
    for name, one in known.items():
        room = int(need * one.hbm_bytes / (24 * fit.USABLE * one.chips))
        known[name] = replace(one, generation=replace(one.generation, hbm_bytes=room))
    refused = fit.refuse(program, known["v5e-1"], fit.fit_of(step, known["v5e-1"]), step)
    assert refused.hint is not None
    assert "'v6e-1'" in refused.hint
