"""Functions that activations are made of, in f64."""

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]
SERIES_TERMS = 80  # enough for f64 up to 4, beyond which erf is 1 to f32


def sigmoid(x: F64Array) -> F64Array:
    """Return ``1 / (1 + exp(-x))``."""
    return np.asarray(1 / (1 + np.exp(-x)))


def erf(x: F64Array) -> F64Array:
    """Return the error function by its series (Abramowitz and Stegun 1964, 7.1.5)."""
    near = np.clip(x, -4, 4)
    total, term = np.zeros_like(near), near.copy()
    for n in range(SERIES_TERMS):
        total += term / (2 * n + 1)
        term = -term * near * near / (n + 1)
    return np.asarray(np.where(np.abs(x) < 4, 2 / np.sqrt(np.pi) * total, np.sign(x)))


def gelu(x: F64Array, *, approximate: bool) -> F64Array:
    """Return ``x * Phi(x)``, or its approximation by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    if approximate:
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + erf(x / np.sqrt(2))))
