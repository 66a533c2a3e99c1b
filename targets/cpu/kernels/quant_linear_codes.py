"""How the codes of a group of 32 columns lie in the vectors of a packed weight.

A vector holds a byte for each of `lanes` output rows by four neighbouring columns; a quad is such a vector
once it is decoded, one code a byte. A group has 8 quads in as many vectors as a code has bits:

    8 bits  quad j is vector j
    4 bits  quad j is a nibble of vector j / 2
    2 bits  quad j is two bits of vector j / 4
    3 bits  quads 0..5 are the low six bits of vectors 0..2, two each; the two bits that are left in each
            hold quads 6 and 7: their low bits in vectors 0 and 1, both third bits in vector 2

Three bits so take 19 operations a group to decode; a plane of two bits and a plane of one bit take 37.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

QUADS = 8


@dataclass(frozen=True)
class Field:
    """Some bits of a quad's codes: `width` from bit `shift` of a vector's bytes, from bit `at` of a code."""

    vector: int
    shift: int
    width: int
    at: int = 0

    @property
    def whole(self) -> bool:
        """Return whether nothing lies above the field in its byte."""
        return self.shift + self.width == 8

    @property
    def mask(self) -> int:
        """Return the field's bits of the code."""
        return ((1 << self.width) - 1) << self.at


def fields(bits: int, quad: int) -> tuple[Field, ...]:
    """Return where the codes of a quad lie."""
    if bits == 3:
        if quad < 6:
            return (Field(quad // 2, quad % 2 * 3, 3),)
        return Field(quad - 6, 6, 2), Field(2, quad, 1, at=2)
    share = 8 // bits
    return (Field(quad // share, quad % share * bits, bits),)


def packed_codes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack codes [.., 8 quads, bytes] into vectors [.., bits, bytes]."""
    packed = np.zeros((*codes.shape[:-2], bits, codes.shape[-1]), np.uint8)
    for quad in range(QUADS):
        for field in fields(bits, quad):
            packed[..., field.vector, :] |= (codes[..., quad, :] & field.mask) >> field.at << field.shift
    return packed


def decoded(load: Callable[[int], Any], bits: int, constant: Callable[[int], Any]) -> Iterator[Any]:
    """Yield the quads of a group as expressions: `load(i)` is its vector i, `constant(n)` n as a vector.

    Each vector is loaded once, when it is first wanted.
    """
    vectors: dict[int, Any] = {}
    for quad in range(QUADS):
        parts = []
        for field in fields(bits, quad):
            if field.vector not in vectors:
                vectors[field.vector] = load(field.vector)
            parts.append(_extracted(vectors[field.vector], field, constant))
        yield parts[0] if len(parts) == 1 else parts[0] | parts[1]


def _extracted(vector: Any, field: Field, constant: Callable[[int], Any]) -> Any:
    """Return a field's bits in their place."""
    shift = field.shift - field.at
    moved = vector >> constant(shift) if shift else vector
    return moved if field.whole and not field.at else moved & constant(field.mask)
