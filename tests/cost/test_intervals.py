import math
import random
import statistics

import pytest

from tokc.cost import records
from tokc.cost.intervals import NORMAL_95, paired_ratio, ratio_of_means, student_95
from tokc.cost.spread import Spread


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042), (40, 2.0211), (120, 1.9799)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_95(freedom) == pytest.approx(quantile, abs=5e-4)


def test_students_quantile_falls_to_the_normal_one() -> None:
    values = [student_95(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert student_95(1e9) == pytest.approx(NORMAL_95)


def test_the_interval_of_three_values_by_hand() -> None:
    interval = Spread.of([10.0, 11.0, 12.0]).interval()
    half = 4.303 * 1.0 / math.sqrt(3)  # 2.48 beside 11
    factor = math.exp(half / 11)
    assert (interval.low, interval.high) == pytest.approx((11 / factor, 11 * factor))
    assert (interval.low, interval.high) == pytest.approx((11 - half, 11 + half), rel=0.05)


def test_a_rate_cannot_be_negative_however_far_apart_its_repetitions_are() -> None:
    interval = Spread.of([1.0, 10.0, 100.0]).interval()
    assert 0 < interval.low < 1
    assert interval.high > 100


def test_a_bench_that_kept_no_deviation_has_the_same_interval_for_three() -> None:
    kept, bare = Spread.of([3.0, 5.0, 4.5]), Spread(4.5, 3.0, 5.0, 3)
    assert bare.interval().low == pytest.approx(kept.interval().low)
    assert Spread(4.5, 3.0, 5.0, 7).interval().high == 5.0


def test_a_spread_without_mean_is_still_read() -> None:
    old = {"median": 4.5, "least": 3.0, "greatest": 5.0, "repetitions": 3}
    assert records.decode(Spread, old, where="bench").mean is None


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    source, covered, rounds = random.Random(0), 0, 2000
    for _ in range(rounds):
        spread = Spread.of([source.gauss(100, 5) for _ in range(5)])
        covered += spread.interval().holds(100.0)
    assert covered / rounds == pytest.approx(0.95, abs=0.015)


def test_pairs_cancel_what_both_of_them_suffer() -> None:
    source = random.Random(1)
    slow = [source.uniform(1, 3) for _ in range(6)]  # the machine's mood, the same for both of a pair
    pairs = [(mood, 0.9 * mood * source.uniform(0.99, 1.01)) for mood in slow]
    ratio = paired_ratio(pairs)
    assert ratio.value == pytest.approx(0.9, rel=0.02)
    assert ratio.conclusive
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    apart = ratio_of_means(
        (statistics.fmean(first), statistics.stdev(first)),
        (statistics.fmean(second), statistics.stdev(second)),
        (6, 6),
    )
    assert not apart.conclusive
    assert apart.high - apart.low > 10 * (ratio.high - ratio.low)


def test_equal_figures_are_no_difference() -> None:
    assert not ratio_of_means((2.0, 0.0), (2.0, 0.0), (3, 3)).conclusive
    assert ratio_of_means((2.0, 0.0), (3.0, 0.0), (3, 3)).conclusive
