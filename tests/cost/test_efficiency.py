"""Efficiencies of kernels: what a fit finds again, and what it says of what it cannot know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokc.cost.efficiency import ANY, Amounts, Efficiencies, Efficiency, fit, kind_of
from tokc.cost.launch_work import LaunchWork

# seconds at the roofs of memory, arithmetic and own bytes: small and large weights, few and many rows
WORK = [
    Amounts(weights, weights * rows / 8, 1e-8 * rows)
    for weights in (1e-6, 5e-6, 4e-5)
    for rows in (1, 2, 4, 8, 12, 16, 64)
]
shares = st.floats(0.2, 1.5)


@settings(deadline=None, max_examples=25)
@given(shares, shares, shares, st.floats(0, 2e-6))
def test_a_fit_finds_the_efficiency_that_made_its_samples(
    memory: float, compute: float, caches: float, launch_s: float
) -> None:
    made = Efficiency("QuantLinear", launch_s, memory, compute, caches)
    found = fit("QuantLinear", WORK, [made.seconds(work) for work in WORK])
    assert [found.seconds(work) for work in WORK] == pytest.approx([made.seconds(w) for w in WORK], rel=0.03)


def test_noise_moves_a_fit_by_no_more_than_the_noise() -> None:
    made = Efficiency("QuantLinear", 5e-7, 0.85, 0.7, 1.0)
    noise = np.random.default_rng(0).uniform(0.95, 1.05, len(WORK))
    found = fit("QuantLinear", WORK, [made.seconds(w) * n for w, n in zip(WORK, noise, strict=True)])
    assert found.memory == pytest.approx(0.85, rel=0.05)
    assert found.compute == pytest.approx(0.7, rel=0.05)


def test_launches_that_are_all_alike_owe_their_time_to_their_work() -> None:
    found = fit("QuantLinear", [Amounts(4e-4, 1e-5, 0.0)] * 3, [5e-4] * 3)
    assert found == Efficiency("QuantLinear", 0.0, pytest.approx(0.8), None, None)


def test_a_kernel_hides_arithmetic_behind_memory() -> None:
    one = Efficiency("QuantLinear", 1e-6, 0.5, 0.5, 1.0)
    assert one.seconds(Amounts(1e-5, 1e-6, 0.0)) == pytest.approx(1e-6 + 2e-5)
    assert one.seconds(Amounts(1e-6, 1e-5, 2e-6)) == pytest.approx(1e-6 + 2e-5 + 2e-6)


def test_a_kind_that_was_not_measured_takes_the_nearest_width() -> None:
    four, eight = (Efficiency(f"QuantLinear {bits} bits", 0.0, 1.0, 1.0, 1.0) for bits in (4.5, 8.5))
    other = Efficiency(ANY, 0.0, 0.5, 0.5, 0.5)
    found = Efficiencies((four, eight, other), "")
    assert found.of("QuantLinear 5 bits") is four
    assert found.of("QuantLinear 9 bits") is eight
    assert found.of("PagedAttention") is other
    assert Efficiencies((four,), "").of("PagedAttention").memory == 1.0


def test_kinds_are_ops_and_widths() -> None:
    packed = LaunchWork("int8", row_flops=2 * 1024.0, whole_bytes=576.0)
    assert kind_of("QuantLinear", packed) == "QuantLinear 4.5 bits"
    assert kind_of("AddRmsNorm", LaunchWork(row_flops=10.0, whole_bytes=40.0)) == "AddRmsNorm"


def test_slower_memory_lengthens_what_is_at_memorys_own_rate_alone() -> None:
    half = Efficiency("x", launch_s=1.0, memory=0.5, compute=1.0, caches=None)
    assert half.seconds(Amounts(3.0, 0.0, 0.0)) == 1.0 + 6.0
    assert half.seconds(Amounts(3.0, 0.0, 0.0), slower=2.0) == 1.0 + 6.0 + 3.0
    cached = Efficiency("x", launch_s=0.0, memory=1.5, compute=1.0, caches=None)
    assert cached.seconds(Amounts(3.0, 0.0, 0.0), slower=2.0) == 2.0 * cached.seconds(Amounts(3.0, 0.0, 0.0))
    assert half.seconds(Amounts(1.0, 5.0, 0.0), slower=2.0) == 1.0 + 5.0
