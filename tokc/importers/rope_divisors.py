"""Llama 3's scaling of rotations as GGUF has it: a divisor of each frequency (`rope_freqs.weight`).

Source: llama.cpp, convert_hf_to_gguf.py; the scaling is that of transformers' `rope_type` "llama3".
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Scaling = dict[str, object]

FACTORS = (8.0, 32.0)  # of Llama 3.1 and of 3.2
GIVEN = "divisors"  # the `rope_type` of divisors that no known scaling gives


def llama3_divisors(scaling: Mapping[str, object], theta: float, dim: int) -> npt.NDArray[np.float32]:
    """Return what each frequency of a head of `dim` elements is divided by, f32[dim / 2]."""
    factor, original = _number(scaling, "factor"), _number(scaling, "original_max_position_embeddings")
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def scaling_of(divisors: Sequence[float], theta: float) -> Scaling:
    """Return the scaling that divisors spell: Llama 3's if they are its, else the divisors themselves."""
    for factor in FACTORS:
        scaling: Scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(llama3_divisors(scaling, theta, 2 * len(divisors)), divisors, rtol=1e-4):
            return scaling
    return {"rope_type": GIVEN, GIVEN: list(divisors)}


def _number(scaling: Mapping[str, object], key: str) -> float:
    value = scaling[key]
    assert isinstance(value, int | float), f"'{key}' is a number"
    return float(value)
