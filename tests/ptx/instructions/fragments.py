"""Where the elements of a matrix lie in the registers of a warp.

Lane l of a warp is in group g = l / 4, at t = l % 4. A register holds e neighbours of a row of A, of a column
of B, or of a row of C and D. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16" and its siblings.
"""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.ptx.types import Array

WARP = 32
GROUP = np.arange(WARP) // 4
AT = np.arange(WARP) % 4
ELEMENTS: dict[str, npt.DTypeLike] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "s8": np.int8,
    "u8": np.uint8,
    "tf32": np.float32,
}


def element_bytes(name: str) -> int:
    """Return the size of one element."""
    return np.dtype(ELEMENTS[name]).itemsize


def numbers(raw: Array, name: str) -> Array:
    """Return bits as numbers to multiply: f32, or s32 for integers; tf32 drops the 13 low bits."""
    if name == "tf32":
        return (raw.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    wide = np.int32 if name in {"s8", "u8"} else np.float32
    return np.ascontiguousarray(raw).view(ELEMENTS[name]).astype(wide)


def gather_a(registers: Sequence[Array], name: str, k: int) -> Array:
    """Return A [warps, 16, k] of registers [lanes] u32."""
    share = 4 // element_bytes(name)
    warps = len(registers[0]) // WARP
    found = np.zeros((warps, 16, k), np.int32 if name in {"s8", "u8"} else np.float32)
    for index, register in enumerate(registers):
        value = numbers(register, name).reshape(warps, WARP, share)
        for part in range(share):
            column = AT * share + part + 4 * share * (index // 2)
            found[:, GROUP + 8 * (index % 2), column] = value[..., part]
    return found


def gather_b(registers: Sequence[Array], name: str, k: int) -> Array:
    """Return B [warps, k, 8]."""
    share = 4 // element_bytes(name)
    warps = len(registers[0]) // WARP
    found = np.zeros((warps, k, 8), np.int32 if name in {"s8", "u8"} else np.float32)
    for index, register in enumerate(registers):
        value = numbers(register, name).reshape(warps, WARP, share)
        for part in range(share):
            found[:, AT * share + part + 4 * share * index, GROUP] = value[..., part]
    return found


def accumulate(total: Array, a: Array, b: Array) -> Array:
    """Return total + a @ b, [.., m, n] of [.., m, k] and [.., k, n], adding the terms in the order of k."""
    found = total.copy()
    for index in range(a.shape[-1]):
        found += a[..., index, None] * b[..., index, None, :]
    return found


def accumulator_places(index: int) -> tuple[Array, Array]:
    """Return the row and the column, of 16 x 8, of each lane's register `index` of an f32 or s32 C."""
    return GROUP + 8 * (index // 2), AT * 2 + index % 2
