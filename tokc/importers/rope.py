"""Rotary position tables: the angles of every position, in f32 as transformers computes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokc.errors import ImportRefused
from tokc.importers.families import Config, number

F32Array = npt.NDArray[np.float32]

SUPPORTED = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Llama3Scaling:
    """State how Llama 3 stretches its slow frequencies; `original_context` in tokens."""

    low_frequency_factor: float
    high_frequency_factor: float
    original_context: float


@dataclass(frozen=True)
class Rope:
    """State a rotary embedding; `factor` divides the frequencies, only the slow ones if `llama3` is given.

    `divisors` [dim / 2] are a GGUF file's own, one a frequency.
    """

    theta: float
    factor: float = 1.0
    llama3: Llama3Scaling | None = None
    divisors: tuple[float, ...] | None = None

    def tables(self, dim: int, positions: int) -> tuple[F32Array, F32Array]:
        """Return cos and sin, [positions, dim / 2]."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self._frequencies(dim))
        return np.cos(angles), np.sin(angles)

    def _frequencies(self, dim: int) -> F32Array:
        exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
        frequencies = np.asarray(np.float32(1) / np.float32(self.theta) ** exponents, dtype=np.float32)
        if self.divisors is not None:
            return np.asarray(frequencies / np.asarray(self.divisors, dtype=np.float32))
        if self.llama3 is None:
            return np.asarray(frequencies / np.float32(self.factor))
        return self._stretched(frequencies, self.llama3)

    def _stretched(self, frequencies: F32Array, scaling: Llama3Scaling) -> F32Array:
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        wavelengths = 2 * math.pi / frequencies
        smooth = (scaling.original_context / wavelengths - low) / (high - low)
        blended = (1 - smooth) * frequencies / self.factor + smooth * frequencies
        slow = np.where(wavelengths > scaling.original_context / low, frequencies / self.factor, blended)
        kept = np.where(wavelengths < scaling.original_context / high, frequencies, slow)
        return np.asarray(kept, dtype=np.float32)


def ropes_of(config: Config, local_theta: float | None, origin: str) -> tuple[Rope, Rope]:
    """Return the embedding of the full layers and of the sliding ones, one for both without `local_theta`.

    Reads `rope_parameters`, flat or one a layer type, and the older `rope_theta`, `rope_scaling` and
    `rope_local_base_freq`. Raises: ImportRefused for a kind of scaling that is not supported.
    """
    parameters = _section(config, "rope_parameters")
    full = _section(parameters, "full_attention") if "full_attention" in parameters else parameters
    theta = number(full, "rope_theta", number(config, "rope_theta", 10_000.0))
    rope = _scaled(theta, full or _section(config, "rope_scaling"), origin)
    if local_theta is None:
        return rope, rope
    local = _section(parameters, "sliding_attention")
    theta = number(local, "rope_theta", number(config, "rope_local_base_freq", local_theta))
    return rope, _scaled(theta, local, origin)


def _section(config: Config, key: str) -> Config:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ImportRefused(f"'{key}' is '{value}', not an object", hint="correct config.json")
    return value


def _scaled(theta: float, scaling: Config, origin: str) -> Rope:
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if kind not in SUPPORTED or number(scaling, "partial_rotary_factor", 1.0) != 1.0:
        what = f"type '{kind}'" if kind not in SUPPORTED else "a part of each head only"
        raise ImportRefused(
            f"rotary embeddings of {what} are not supported; supported are {', '.join(SUPPORTED)}",
            where=origin,
            hint="delete the rope scaling from config.json to run the model at its original context",
        )
    if kind == "default":
        return Rope(theta)
    factor = number(scaling, "factor")
    if kind == "linear":
        return Rope(theta, factor)
    low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
    return Rope(theta, factor, Llama3Scaling(low, high, number(scaling, "original_max_position_embeddings")))
