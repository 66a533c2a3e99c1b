"""Rotary position tables: the angles of every position, in f32 as transformers computes them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokc.errors import ImportRefused
from tokc.importers.family import Config, number
from tokc.importers.rope_scaling import (
    ORIGINAL,
    Lengths,
    Scaling,
    longest_context,
    plain_frequencies,
    scaling_of,
    usual_context,
)

F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """State a rotary embedding of the first `rotated` elements of a head, of all if None.

    `divisors` [rotated / 2] are a GGUF file's own, one a frequency.
    """

    theta: float
    scaling: Scaling | None = None
    divisors: tuple[float, ...] | None = None
    rotated: int | None = None

    def tables(self, dim: int, positions: int) -> tuple[F32Array, F32Array]:
        """Return cos and sin, [positions, dim / 2]; pairs beyond the rotated ones stay as they are."""
        rotated = dim if self.rotated is None else self.rotated
        angles = np.outer(np.arange(positions, dtype=np.float32), self._frequencies(rotated))
        factor = np.float32(1.0 if self.scaling is None else self.scaling.attention_factor)
        still = [(0, 0), (0, (dim - rotated) // 2)]
        cos = np.pad(np.cos(angles) * factor, still, constant_values=1)
        return cos, np.pad(np.sin(angles) * factor, still)

    def require_numbers(self, dim: int) -> None:
        """Check that the frequencies are numbers.

        Raises: ImportRefused if the parameters give none.
        """
        found = self._frequencies(dim if self.rotated is None else self.rotated)
        if not (self.theta > 0 and np.isfinite(found).all()):
            raise ImportRefused(
                "the rotary parameters give frequencies that are no numbers", hint="correct config.json"
            )

    @np.errstate(all="ignore")  # what is no number is refused, or of a branch that is not taken
    def _frequencies(self, rotated: int) -> F32Array:
        if self.divisors is not None:
            plain = plain_frequencies(self.theta, rotated)
            return np.asarray(plain / np.asarray(self.divisors, dtype=np.float32))
        if self.scaling is None:
            return plain_frequencies(self.theta, rotated)
        return self.scaling.frequencies(self.theta, rotated)


def rotated_first(dim: int, rotated: int) -> list[int]:
    """Return where each element of a head is found so that a whole rotation turns the first `rotated` only.

    A whole rotation pairs element i with i + dim / 2; these pairs become (i, i + rotated / 2) and, beyond
    them, pairs that a table leaves as they are. Scores do not depend on the order of a head's elements.
    """
    half, rest = rotated // 2, (dim - rotated) // 2
    still = range(rotated, dim)
    return [*range(half), *still[:rest], *range(half, rotated), *still[rest:]]


def rope_parameters(config: Config) -> Config:
    """Return the rotary parameters of the full layers, the older spelling's under their present names."""
    stated = _section(config, "rope_parameters")
    full = _section(stated, "full_attention") if "full_attention" in stated else stated
    merged = dict(full or _section(config, "rope_scaling"))
    for key in ("rope_theta", ORIGINAL, "partial_rotary_factor"):
        if merged.get(key) is None and config.get(key) is not None:
            merged[key] = config[key]
    return merged


def context_limits(config: Config, trained: int) -> tuple[int, int]:
    """Return the contexts in tokens up to which every length is rotated alike, and up to which any is."""
    scaling = rope_parameters(config)
    return usual_context(scaling, trained), longest_context(scaling, trained)


def rotated_elements(config: Config, share: float, dim: int) -> int:
    """Return how many elements of a head of `dim` are rotated.

    Raises: ImportRefused if they do not make pairs.
    """
    rotated = int(dim * number(rope_parameters(config), "partial_rotary_factor", share))
    if not 0 < rotated <= dim or rotated % 2 or dim % 2:
        raise ImportRefused(
            f"{rotated} of a head's {dim} elements cannot be rotated in pairs", hint="correct config.json"
        )
    return rotated


def ropes_of(
    config: Config, local_theta: float | None, lengths: Lengths, dim: int, origin: str
) -> tuple[Rope, Rope]:
    """Return the embedding of the full layers and of the sliding ones, one for both without `local_theta`.

    Reads `rope_parameters`, flat or one a layer type, and the older `rope_theta`, `rope_scaling` and
    `rope_local_base_freq`. Raises: ImportRefused for a kind of scaling that is not supported.
    """
    full = rope_parameters(config)
    rotated = None if lengths.rotated == dim else lengths.rotated
    theta = number(full, "rope_theta", 10_000.0)
    rope = Rope(theta, scaling_of(full, lengths, origin), rotated=rotated)
    rope.require_numbers(dim)
    if local_theta is None:
        return rope, rope
    local = _section(_section(config, "rope_parameters"), "sliding_attention")
    theta = number(local, "rope_theta", number(config, "rope_local_base_freq", local_theta))
    near = Rope(theta, scaling_of(local, lengths, origin), rotated=rotated)
    near.require_numbers(dim)
    return rope, near


def _section(config: Config, key: str) -> Mapping[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ImportRefused(f"'{key}' is '{value}', not an object", hint="correct config.json")
    return value
