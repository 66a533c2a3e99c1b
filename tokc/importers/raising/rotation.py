"""What a linear map of heads is: a scale, and a rotation of positions."""

from typing import NamedTuple

import numpy as np

from tokc.importers.raising.facts import F64Array, Rotation

TOLERANCE = 2e-5
HEADS_RANK = 4


class Turned(NamedTuple):
    """Hold the scale of a map of heads, and its rotation if it has one."""

    scale: float
    rotation: Rotation | None


def split_heads(x: F64Array, heads: int) -> F64Array:
    """Return [batch, seq, heads * dim] as [batch, heads, seq, dim]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def turned(y: F64Array, x: F64Array) -> Turned | None:
    """Return by which scale and rotation y follows from x, both [batch, heads, seq, dim]; None if by none.

    A rotation may be of the first elements of each head only; the others are scaled alone.
    """
    scale = float((x * y).sum() / (x * x).sum())
    if _near(y, scale * x):
        return Turned(scale, None)
    dim = x.shape[-1]
    for width in range(dim - dim % 2, 0, -2):
        rest = x[..., width:]
        scale = float((rest * y[..., width:]).sum() / (rest * rest).sum()) if width < dim else 0.0
        if not _near(y[..., width:], scale * rest):
            return None
        for interleaved in (False, True):
            found = _rotation(y[..., :width], x[..., :width], scale, interleaved=interleaved)
            if found is not None:
                return Turned(found[0], _whole(found[1], dim))
    return None


def _rotation(y: F64Array, x: F64Array, scale: float, *, interleaved: bool) -> tuple[float, Rotation] | None:
    """Read cos and sin off all heads, which must agree; without a `scale` (0) their length is it."""
    width = x.shape[-1]
    pairs = np.arange(width).reshape(-1, 2) if interleaved else np.arange(width).reshape(2, -1).T
    one, other = pairs.T
    x1, x2, y1, y2 = x[..., one], x[..., other], y[..., one], y[..., other]
    lengths = (x1 * x1 + x2 * x2).sum((0, 1))
    cos, sin = (x1 * y1 + x2 * y2).sum((0, 1)) / lengths, (x1 * y2 - x2 * y1).sum((0, 1)) / lengths
    if not (_near(y1, x1 * cos - x2 * sin) and _near(y2, x2 * cos + x1 * sin)):
        return None
    scale = scale or float(np.hypot(cos, sin).mean())
    partner = np.empty(width, dtype=np.int64)
    partner[one], partner[other] = other, one
    whole_cos, whole_sin = np.empty((len(cos), width)), np.empty((len(cos), width))
    whole_cos[:, one] = whole_cos[:, other] = cos / scale
    whole_sin[:, one], whole_sin[:, other] = -sin / scale, sin / scale
    return scale, Rotation(partner, whole_cos, whole_sin)


def _whole(rotation: Rotation, dim: int) -> Rotation:
    """Extend a rotation to whole heads; what it leaves as it is becomes its own partner."""
    width = len(rotation.partner)
    partner, turned_cos = np.arange(dim), np.ones((len(rotation.cos), dim))
    turned_sin = np.zeros_like(turned_cos)
    partner[:width], turned_cos[:, :width], turned_sin[:, :width] = (
        rotation.partner,
        rotation.cos,
        rotation.sin,
    )
    still = (np.abs(turned_cos - 1) < TOLERANCE).all(0) & (np.abs(turned_sin) < TOLERANCE).all(0)
    partner[still] = np.arange(dim)[still]
    return Rotation(partner, turned_cos, turned_sin)


def _near(one: F64Array, other: F64Array) -> bool:
    return bool(np.allclose(one, other, rtol=0, atol=TOLERANCE * (1 + np.abs(other).max(initial=0))))
