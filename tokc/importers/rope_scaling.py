"""The ways in which rotary frequencies are changed for contexts longer than a model was trained on.

Each kind gives the frequencies of a head's rotated part, and a factor of cosines and sines. All is computed
in f32, as transformers' `modeling_rope_utils` does, which is the reference. Two kinds depend on the length of
a sequence, dynamic NTK and LongRoPE: a program has one table, so the context that it is built for decides.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tokc.errors import ImportRefused
from tokc.importers.family import Config, number

F32Array = npt.NDArray[np.float32]
ORIGINAL = "original_max_position_embeddings"
CORRECT = "correct the rotary parameters in config.json"


def plain_frequencies(theta: float, dim: int) -> F32Array:
    """Return theta ** (-2 i / dim), f32[dim / 2]."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.asarray(np.float32(1) / np.float32(theta) ** exponents, dtype=np.float32)


class Scaling(Protocol):
    """A way to change the frequencies."""

    @property
    def attention_factor(self) -> float:
        """Return what cosines and sines are multiplied by."""
        ...

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the angles of position 1, f32[dim / 2]."""
        ...


@dataclass(frozen=True)
class Linear:
    """Divide all frequencies by `factor`."""

    factor: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the divided frequencies."""
        return np.asarray(plain_frequencies(theta, dim) / np.float32(self.factor))


@dataclass(frozen=True)
class DynamicNtk:
    """Raise theta by how much `context`, the tokens that are built for, exceeds `trained`."""

    factor: float
    trained: float
    context: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the frequencies of the raised theta."""
        longest = max(self.context, self.trained)
        raised = self.factor * longest / self.trained - (self.factor - 1)
        return plain_frequencies(theta * raised ** (dim / (dim - 2)), dim)


@dataclass(frozen=True)
class Llama3:
    """Divide the slow frequencies by `factor` and blend those in between; `original` in tokens."""

    factor: float
    low: float
    high: float
    original: float
    attention_factor: float = 1.0

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the stretched frequencies."""
        plain = plain_frequencies(theta, dim)
        wavelengths = 2 * math.pi / plain
        smooth = (self.original / wavelengths - self.low) / (self.high - self.low)
        blended = (1 - smooth) * plain / self.factor + smooth * plain
        slow = np.where(wavelengths > self.original / self.low, plain / self.factor, blended)
        kept = np.where(wavelengths < self.original / self.high, plain, slow)
        return np.asarray(kept, dtype=np.float32)


@dataclass(frozen=True)
class Yarn:
    """Divide frequencies by `factor`, less so the faster they turn within `original` tokens.

    Source: Peng et al. 2023, arXiv:2309.00071.
    """

    factor: float
    original: float
    fast: float
    slow: float
    truncate: bool
    attention_factor: float

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the blended frequencies."""
        powers = np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
        low, high = self._edges(theta, dim)
        ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        kept = 1 - np.clip(ramp, 0, 1)
        divided, plain = 1 / (np.float32(self.factor) * powers), 1 / powers
        return np.asarray(divided * (1 - kept) + plain * kept, dtype=np.float32)

    def _edges(self, theta: float, dim: int) -> tuple[float, float]:
        low, high = (
            dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.fast, self.slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        return low, high + (0.001 if low == high else 0.0)


@dataclass(frozen=True)
class LongRope:
    """Divide each frequency by a factor of its own, one list for short contexts and one for long ones.

    Source: Ding et al. 2024, arXiv:2402.13753.
    """

    factors: tuple[float, ...]
    attention_factor: float

    def frequencies(self, theta: float, dim: int) -> F32Array:
        """Return the divided frequencies."""
        powers = np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
        return np.asarray(1 / (np.asarray(self.factors, np.float32) * powers), dtype=np.float32)


@dataclass(frozen=True)
class Lengths:
    """State the tokens a model was made for, those that are built for, and the elements that are rotated."""

    trained: int
    context: int
    rotated: int


def _linear(scaling: Config, _: Lengths) -> Scaling:
    return Linear(_positive(scaling, "factor"))


def _dynamic(scaling: Config, lengths: Lengths) -> Scaling:
    return DynamicNtk(_positive(scaling, "factor"), lengths.trained, lengths.context)


def _llama3(scaling: Config, _: Lengths) -> Scaling:
    low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
    return Llama3(_positive(scaling, "factor"), low, high, _above_one(scaling, ORIGINAL))


def _yarn(scaling: Config, lengths: Lengths) -> Scaling:
    original = _above_one(scaling, ORIGINAL, lengths.trained)
    factor = _positive(scaling, "factor", lengths.trained / original)
    return Yarn(
        factor=factor,
        original=original,
        fast=number(scaling, "beta_fast", 32.0) or 32.0,
        slow=number(scaling, "beta_slow", 1.0) or 1.0,
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=number(scaling, "attention_factor", _yarn_factor(scaling, factor)),
    )


def _yarn_factor(scaling: Config, factor: float) -> float:
    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, all_dims = number(scaling, "mscale", 0.0), number(scaling, "mscale_all_dim", 0.0)
    return grown(one) / grown(all_dims) if one and all_dims else grown(1.0)


def _longrope(scaling: Config, lengths: Lengths) -> Scaling:
    original = _above_one(scaling, ORIGINAL, lengths.trained)
    factor = _positive(scaling, "factor", lengths.trained / original)
    key = "long_factor" if lengths.context > original else "short_factor"
    factors = scaling.get(key)
    count = lengths.rotated // 2
    if not isinstance(factors, list) or len(factors) != count or not all(map(_is_number, factors)):
        found = f"{len(factors)} numbers" if isinstance(factors, list) else f"'{factors}'"
        raise ImportRefused(f"'{key}' is {found}, not {count} numbers", hint=CORRECT)
    grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRope(tuple(float(one) for one in factors), number(scaling, "attention_factor", grown))


def _positive(scaling: Config, key: str, default: float | None = None) -> float:
    value = number(scaling, key, default)
    if value <= 0:
        raise ImportRefused(f"'{key}' is {value:g}, not above 0", hint=CORRECT)
    return value


def _above_one(scaling: Config, key: str, default: float | None = None) -> float:
    value = number(scaling, key, default)
    if value <= 1:
        raise ImportRefused(f"'{key}' is {value:g}, not above 1", hint=CORRECT)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS: Mapping[str, Callable[[Config, Lengths], Scaling | None]] = {
    "default": lambda *_: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
ALIASES: Mapping[str, str] = {"su": "longrope"}  # Phi-3's first name for it


def kind_of(scaling: Config) -> str:
    """Return the kind that a configuration's rotary parameters name."""
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    return ALIASES.get(kind, kind)


def scaling_of(scaling: Config, lengths: Lengths, origin: str) -> Scaling | None:
    """Return how rotary parameters change the frequencies, None if they do not.

    Raises: ImportRefused for a kind that is not supported, or a value that is missing.
    """
    kind = kind_of(scaling)
    if kind not in KINDS:
        raise ImportRefused(
            f"rotary embeddings of type '{kind}' are not supported; supported are {', '.join(KINDS)}",
            where=origin,
            hint="delete the rope scaling from config.json to run the model at its original context",
        )
    return KINDS[kind](scaling, lengths)


def usual_context(scaling: Config, trained: int) -> int:
    """Return the tokens up to which one table is right for every length: LongRoPE has another beyond."""
    return (
        min(trained, int(_above_one(scaling, ORIGINAL, trained)))
        if kind_of(scaling) == "longrope"
        else trained
    )


def longest_context(scaling: Config, trained: int) -> int:
    """Return the tokens up to which positions make sense, which scaling may take beyond `trained`."""
    kind = kind_of(scaling)
    if kind == "dynamic":
        return int(trained * _positive(scaling, "factor", 1.0))
    if kind == "yarn":
        return max(trained, int(_positive(scaling, "factor", 1.0) * _above_one(scaling, ORIGINAL, trained)))
    return trained
