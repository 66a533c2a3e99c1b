"""The measures of how far two models' answers are apart."""

import math

import numpy as np
import pytest

from tokc.quality.divergence import divergence


def test_equal_logits_do_not_diverge() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 5, 17)).astype(np.float32)
    measured = divergence(logits, logits.copy())
    assert (measured.positions, measured.kl_mean, measured.kl_p99) == (10, 0.0, 0.0)
    assert (measured.top1_agree, measured.max_abs_logit_diff) == (1.0, 0.0)


def test_a_shift_of_all_logits_of_a_position_moves_no_probability() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 17)).astype(np.float32)
    measured = divergence(logits, logits + np.float32(4))
    assert measured.kl_mean < 1e-12
    assert measured.max_abs_logit_diff == pytest.approx(4, rel=1e-5)


def test_kl_is_taken_from_the_reference() -> None:
    reference = np.log(np.array([[0.5, 0.5]], np.float32))
    other = np.log(np.array([[0.9, 0.1]], np.float32))
    assert divergence(reference, other).kl_mean == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6
    )
    assert divergence(other, reference).kl_mean == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6
    )


def test_the_99th_percentile_sees_what_the_mean_hides() -> None:
    reference = np.zeros((1000, 8), np.float32)
    other = reference.copy()
    other[:20, 0] = 30
    measured = divergence(reference, other)
    assert measured.kl_p99 > 20
    assert measured.kl_mean < 1


def test_huge_logits_stay_finite() -> None:
    reference = np.array([[1e30, 0.0, -1e30]], np.float32)
    assert divergence(reference, reference).kl_mean == 0.0


def test_a_nan_anywhere_is_seen() -> None:
    reference = np.zeros((600, 4), np.float32)
    broken = reference.copy()
    broken[0, 2] = np.nan
    measured = divergence(reference, broken)
    assert math.isnan(measured.kl_mean)
    assert math.isnan(measured.max_abs_logit_diff)
