"""The arithmetic of a profile: what a step's work is, which roof bounds it, and how launches add up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.sample import HOST, PROFILE, write_artifact, write_bench
from tokc.cost import records
from tokc.cost.launch_work import LaunchWork
from tokc.cost.measure import Bench
from tokc.cost.profile import CACHES, COMPUTE, MEMORY, Roofs, StepSize, Work, summarize
from tokc.errors import TokcError
from tokc.runtime.executors.base import Batch

ROOFS = Roofs(read_bytes_per_s=50e9, f32_flops_per_s=500e9, int8_flops_per_s=2000e9)
WEIGHTS = LaunchWork("int8", row_flops=2e6, whole_bytes=1e6, row_bytes=100.0)
ATTENTION = LaunchWork(attended_flops=1000.0, cached_bytes=256.0, row_bytes=10.0)
PLAN = {
    "kernels": ["attention", "wide", "narrow"],
    "launches": [
        {"kernel": 2, "op": "QuantLinear", "rows": "tokens", "work": WEIGHTS.to_json()},
        {"kernel": 0, "op": "PagedAttention", "rows": "tokens", "work": ATTENTION.to_json()},
        {"kernel": 2, "op": "QuantLinear", "rows": "tokens", "work": WEIGHTS.to_json()},
        {"kernel": 1, "op": "QuantLinear", "rows": "rows", "work": WEIGHTS.to_json()},
    ],
}


def step(*positions: list[int], rows: int = 1) -> Batch:
    """Return a step with the given positions of each sequence."""
    count = sum(map(len, positions))
    return Batch(
        input_ids=np.zeros(count, np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        sequences=np.repeat(np.arange(len(positions)), list(map(len, positions))).astype(np.int32),
        block_tables=np.zeros((len(positions), 1), np.int32),
        logit_rows=np.arange(rows, dtype=np.int32),
    )


def test_decoding_reads_each_sequences_cache_once() -> None:
    size = StepSize.of(step([9], [4], rows=2))
    assert (size.attended, size.cached) == (10 + 5, 10 + 5)
    assert size.rows == {"tokens": 2, "rows": 2}


def test_a_chunk_attends_to_a_triangle_and_reads_the_cache_once() -> None:
    size = StepSize.of(step([2, 3, 4]))
    assert (size.attended, size.cached) == (3 + 4 + 5, 5)


def test_a_window_bounds_what_is_seen_and_read() -> None:
    size = StepSize.of(step([0, 1, 2, 3, 4], [20]), window=3)
    assert size.attended == (1 + 2 + 3 + 3 + 3) + 3
    assert size.cached == 5 + 3


@pytest.mark.parametrize(
    ("work", "seconds", "roof"),
    [
        (Work("int8", flops=1e9, bytes=1e9, memory_bytes=0.9e9), 0.9e9 / 50e9, MEMORY),
        (Work("int8", flops=400e9, bytes=1e9, memory_bytes=0.9e9), 400e9 / 2000e9, COMPUTE),
        (Work("f32", flops=400e9, bytes=1e9, memory_bytes=0.9e9), 400e9 / 500e9, COMPUTE),
        (Work("f32", flops=1e6, bytes=1e9, memory_bytes=1e3), 1e6 / 500e9, CACHES),
    ],
)
def test_the_roof_is_what_takes_longest(work: Work, seconds: float, roof: str) -> None:
    least_s, bound = ROOFS.bound(work)
    assert (least_s, bound) == (pytest.approx(seconds), roof)


def test_launches_of_a_kernel_add_up_and_repetitions_give_medians() -> None:
    once = np.array([[1e-3, 1e-4], [2e-3, 2e-4], [3e-3, 3e-4], [4e-3, 4e-4]])
    seconds = np.stack([once, 3 * once, 100 * once])
    narrow, attention, wide = summarize(PLAN, step([9], [4], rows=1), seconds, ROOFS)
    assert [kernel.kernel for kernel in (narrow, attention, wide)] == ["narrow", "attention", "wide"]
    assert (narrow.launches, attention.launches, wide.launches) == (2, 1, 1)
    assert narrow.kernel_s == pytest.approx(3 * 4e-3)
    assert narrow.barrier_s == pytest.approx(3 * 4e-4)
    assert sum(kernel.share for kernel in (narrow, attention, wide)) == pytest.approx(1)
    assert narrow.work == Work("int8", flops=2 * 2 * 2e6, bytes=2 * (1e6 + 200), memory_bytes=2e6)
    assert attention.work == Work("f32", flops=15e3, bytes=15 * 256 + 20, memory_bytes=15 * 256)
    assert wide.work.flops == 2e6, "it runs over the one logit row"
    assert narrow.flops_per_s == pytest.approx(8e6 / narrow.kernel_s)
    assert narrow.bytes_per_s == pytest.approx(narrow.work.bytes / narrow.kernel_s)
    assert narrow.of_roof == pytest.approx(narrow.least_s / narrow.kernel_s)


def test_no_share_of_a_roof_is_stated_where_caches_bound() -> None:
    kernel = replace(PROFILE.steps[0].kernels[0], roof=CACHES)
    assert kernel.of_roof is None


def test_an_earlier_plan_is_refused_kindly() -> None:
    launches = [{key: value for key, value in launch.items() if key != "work"} for launch in PLAN["launches"]]
    with pytest.raises(TokcError, match="does not state the work") as refused:
        summarize({**PLAN, "launches": launches}, step([0]), np.ones((1, 4, 2)), ROOFS)
    assert "build it again" in (refused.value.hint or "")


def test_the_steps_parts_are_differences_of_what_was_measured() -> None:
    decode, prefill = PROFILE.steps
    assert decode.profiler_s == pytest.approx(decode.profiled_s.median - decode.step_s.median)
    assert decode.outside_s == pytest.approx(2.2e-3 - 2.0e-3)
    assert prefill.outside_s is None
    assert decode.least_s == sum(kernel.least_s for kernel in decode.kernels)


def test_a_bench_keeps_its_profile_and_one_without_is_read(tmp_path: Path) -> None:
    path = write_bench(write_artifact(tmp_path))
    without = records.read(Bench, path)
    assert without.profile is None
    records.write(path, replace(without, profile=PROFILE))
    assert records.read(Bench, path).profile == PROFILE


def test_the_roofs_are_the_hosts() -> None:
    assert Roofs.of(HOST) == Roofs(HOST.read_bytes_per_s, HOST.f32_flops_per_s, HOST.int8_flops_per_s)
