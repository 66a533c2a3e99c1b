"""PTX types: how the bits of a register become numbers and back.

A register holds unsigned integers of its width, one a lane. `decode` gives an array to compute with: `u`, `s`
and `f` types in numpy's type of that width, bf16 as f32; a packed type, as f16x2, gives [lanes, 2].
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}
FP8: dict[str, Any] = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


@dataclass(frozen=True)
class Type:
    """A type by its PTX name; `bits` of one register, of which `packed` numbers share."""

    name: str
    bits: int
    kind: str
    packed: int = 1

    @property
    def value(self) -> Any:
        """Return numpy's type of what `decode` gives."""
        if self.kind == "pred":
            return np.bool_
        if self.kind == "bf":
            return np.float32
        if self.kind in FP8:
            return FP8[self.kind]
        bits = self.bits // self.packed
        return FLOAT[bits] if self.kind == "f" else SIGNED[bits] if self.kind == "s" else UNSIGNED[bits]

    def decode(self, raw: Array) -> Array:
        """Return the numbers of unsigned integers of the type's own width."""
        if self.kind == "pred":
            return raw
        raw = np.ascontiguousarray(raw)
        found = bf16_to_f32(raw.view(np.uint16)) if self.kind == "bf" else raw.view(self.value)
        return found.reshape(len(raw), self.packed) if self.packed > 1 else found

    def encode(self, value: Array) -> Array:
        """Return the bits; a bf16 is rounded from f32 to nearest even."""
        if self.kind == "pred":
            return value
        assert value.dtype == self.value, f"{self.name} was computed as {value.dtype}"
        if self.kind == "bf":
            value = f32_to_bf16(value)
        found: Array = np.ascontiguousarray(value).view(UNSIGNED[self.bits])
        return found[:, 0] if self.packed > 1 else found


def bf16_to_f32(raw: Array) -> Array:
    """Widen u16 bits of bf16; exact."""
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(value: Array) -> Array:
    """Round f32 to bf16 to nearest even, as u16 bits."""
    return np.ascontiguousarray(value).astype(ml_dtypes.bfloat16).view(np.uint16)


def _types() -> dict[str, Type]:
    found = [Type("pred", 1, "pred"), Type("bf16", 16, "bf"), Type("bf16x2", 32, "bf", 2)]
    found += [Type(f"{kind}{bits}", bits, kind) for kind in "bus" for bits in (8, 16, 32, 64)]
    found += [Type(f"f{bits}", bits, "f") for bits in (16, 32, 64)]
    found += [Type(f"{name}x2", 32, name[0], 2) for name in ("f16", "s16", "u16")]
    found += [Type("f32x2", 64, "f", 2)]
    found += [Type(f"{name}x2", 16, name, 2) for name in FP8]
    found += [Type(f"{name}x4", 32, name, 4) for name in FP8]
    return {each.name: each for each in found}


TYPES = _types()
