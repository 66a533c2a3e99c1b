"""Elementwise kernels against their formulas."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import DTYPES, info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.elementwise import ACTIVATIONS, Add, Apply, Float, Multiply, Scale

ROUNDING = {"f32": 3e-6, "f16": 1e-3}


def data(stride: int, dtype: Float, seed: int) -> npt.NDArray[np.generic]:
    return np.random.default_rng(seed).normal(0, 3, (3, stride)).astype(DTYPES[dtype])


@pytest.mark.parametrize("kind", [Add, Multiply])
@pytest.mark.parametrize(
    ("a_dtype", "b_dtype", "y_dtype"),
    [("f32", "f32", "f32"), ("f16", "f32", "f16"), ("f16", "f16", "f32"), ("f32", "f32", "f16")],
)
def test_pairs_are_added_and_multiplied_a_row_at_its_own_stride(
    kind: type[Add] | type[Multiply], a_dtype: Float, b_dtype: Float, y_dtype: Float
) -> None:
    a, b = data(700, a_dtype, 1), data(608, b_dtype, 2)
    y = np.full((3, 600), 7, DTYPES[y_dtype])
    kernel = kind(
        width=600, a_stride=700, b_stride=608, a_dtype=a_dtype, b_dtype=b_dtype, y_dtype=y_dtype, rows="rows"
    )
    interpret(kernel, {"a": a, "b": b, "info": info(rows=2), "y": y}, {"rows": 3})
    left, right = (each[:2, :600].astype(np.float64) for each in (a, b))
    wanted = left + right if kind is Add else left * right
    np.testing.assert_allclose(y[:2], wanted, rtol=ROUNDING[y_dtype], atol=1e-6)
    assert (y[2] == 7).all()


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [("f32", "f32"), ("f16", "f16"), ("f32", "f16")])
def test_rows_are_scaled(x_dtype: Float, y_dtype: Float) -> None:
    x, y = data(96, x_dtype, 3), np.full((3, 90), 7, DTYPES[y_dtype])
    kernel = Scale(width=90, x_stride=96, factor=-0.37, x_dtype=x_dtype, y_dtype=y_dtype)
    interpret(kernel, {"x": x, "info": info(tokens=2), "y": y}, {"tokens": 3})
    np.testing.assert_allclose(y[:2], x[:2, :90].astype(np.float64) * -0.37, rtol=ROUNDING[y_dtype])
    assert (y[2] == 7).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("x_dtype", "y_dtype"), [("f32", "f32"), ("f16", "f16")])
def test_activations_are_applied(activation: str, x_dtype: Float, y_dtype: Float) -> None:
    x, y = data(64, x_dtype, 4), np.full((3, 64), 7, DTYPES[y_dtype])
    kernel = Apply(width=64, x_stride=64, activation=activation, x_dtype=x_dtype, y_dtype=y_dtype)
    interpret(kernel, {"x": x, "info": info(tokens=2), "y": y}, {"tokens": 3})
    wide = x[:2].astype(np.float64)
    if activation == "sigmoid":
        wanted = 1 / (1 + np.exp(-wide))
    else:
        wanted = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(y[:2], wanted, rtol=ROUNDING[y_dtype], atol=1e-6)
    assert (y[2] == 7).all()


def test_f16_is_held_within_its_range() -> None:
    x, y = np.array([[1e5, -1e5, 1.0, 0.0]], np.float32), np.zeros((1, 4), np.float16)
    kernel = Scale(width=4, x_stride=4, factor=2.0, y_dtype="f16")
    interpret(kernel, {"x": x, "info": info(tokens=1), "y": y}, {"tokens": 1})
    np.testing.assert_array_equal(y, np.array([[65504, -65504, 2, 0]], np.float16))


def test_different_kernels_have_different_names() -> None:
    kernels = [
        *(Scale(width=8, x_stride=8, factor=f) for f in (0.5, 0.50000001, -0.5, 1e30)),
        *(kind(width=8, a_stride=a, b_stride=8) for kind, a in itertools.product((Add, Multiply), (8, 16))),
        *(Apply(width=8, x_stride=8, activation=each) for each in ACTIVATIONS),
    ]
    assert len({kernel.symbol for kernel in kernels}) == len(kernels)
    assert all(kernel.symbol.isidentifier() for kernel in kernels)


def test_what_no_kernel_computes_is_refused() -> None:
    with pytest.raises(TargetRefused, match="unknown activation 'relu'; choose from sigmoid, gelu_tanh"):
        Apply(width=8, x_stride=8, activation="relu")
    with pytest.raises(TargetRefused, match="cannot scale by inf"):
        Scale(width=8, x_stride=8, factor=float("inf"))
