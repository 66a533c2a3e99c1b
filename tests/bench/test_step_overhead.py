"""What the measurement of Python's share counts, and what it does not."""

import time

import pytest

from bench.step_overhead import Clock, summary
from tokc.runtime.sequence import SamplingParams


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_time_in_an_inner_call_is_not_the_outer_ones() -> None:
    clock = Clock()
    inner = clock.timed("inner", busy)

    def outer() -> None:
        busy(0.01)
        inner(0.03)

    clock.timed("outer", outer)()
    assert clock.seconds["inner"] >= 0.03
    assert 0.01 <= clock.seconds["outer"] < 0.02


def test_waiting_takes_no_time() -> None:
    clock = Clock()
    clock.timed("waiting", time.sleep)(0.05)
    assert clock.seconds["waiting"] < 0.02


def test_the_share_is_of_the_median_python_in_a_step_of_the_least_kernels() -> None:
    rows = [
        {"step": 11e-3, "kernels": 10e-3},
        {"step": 6e-3, "kernels": 4e-3},
        {"step": 9e-3, "kernels": 6e-3},
    ]
    found = summary(rows, 16, SamplingParams())
    assert (found.kernels_us, found.python_us) == (4000.0, 2000.0)
    assert found.share == pytest.approx(1 / 3)
    assert found.sampling == "greedy"
