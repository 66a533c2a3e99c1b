"""Rotations that spread what is large over every channel."""

import math

import numpy as np
import pytest

from tokc.passes.rotation.orthogonal import Rotation, factor, orders

HADAMARD = [2, 4, 12, 16, 20, 28, 36, 44, 64, 80, 96, 128, 576, 640, 896, 960, 1152]
OTHER = [1, 3, 6, 46, 92, 100]


@pytest.mark.parametrize("size", HADAMARD + OTHER)
def test_every_size_has_an_orthogonal_matrix(size: int) -> None:
    matrix = Rotation(size, seed=3).matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("size", HADAMARD)
def test_entries_are_alike_in_size_where_a_hadamard_matrix_is_known(size: int) -> None:
    np.testing.assert_allclose(np.abs(Rotation(size).matrix()), size**-0.5, rtol=1e-12)


@pytest.mark.parametrize("size", OTHER)
def test_entries_of_other_sizes_are_small(size: int) -> None:
    odd = max(orders(size), default=1)
    assert np.abs(Rotation(size).matrix()).max() <= math.sqrt(2 / odd) * (odd / size) ** 0.5 + 1e-12


@pytest.mark.parametrize("order", [12, 20, 28, 36, 44, 60])
def test_paleys_matrices_are_hadamard(order: int) -> None:
    matrix = factor(order)
    assert set(np.unique(matrix)) == {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize(
    ("size", "expected"), [(64, (2,) * 6), (576, (2, 2, 12, 12)), (2560, (*(2,) * 7, 20)), (6, (2, 3))]
)
def test_sizes_fall_into_the_factors_that_are_cheapest(size: int, expected: tuple[int, ...]) -> None:
    assert orders(size) == expected


def test_a_seed_gives_its_rotation_and_another_seed_another() -> None:
    one, same, other = (Rotation(12, seed).matrix() for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_vector_turns_alike_alone_and_among_others() -> None:
    x = np.random.default_rng(0).standard_normal((96, 1000))
    rotation = Rotation(96)
    np.testing.assert_array_equal(rotation.turn(x)[:, 77:78], rotation.turn(x[:, 77:78]))
    np.testing.assert_allclose(rotation.turn(x), rotation.matrix().T @ x, atol=1e-12)


def test_one_large_channel_is_spread_over_all() -> None:
    x = np.zeros((576, 1))
    x[5] = 24.0
    np.testing.assert_allclose(np.abs(Rotation(576).turn(x)), 1.0)
