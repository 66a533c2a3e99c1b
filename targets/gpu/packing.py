"""Packs weights into the arrays that `tokc.targets.gpu.kernels.linear` reads, a slab of rows at a time.

`Linear.parts` names the arrays and gives dtypes and shapes without packing anything.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.fp8_linear import Fp8Linear
from tokc.targets.gpu.kernels.int8_linear import Int8Linear
from tokc.targets.gpu.kernels.linear import SCALE_ALIGNMENT, Linear
from tokc.targets.gpu.kernels.scaled_linear import COLUMNS

Array = npt.NDArray[Any]
SLAB_ELEMENTS = 1 << 20
F16_MAX = 65504.0
E4M3_FORMS = {"fp8e4nv": ml_dtypes.float8_e4m3fn, "fp8e4b8": ml_dtypes.float8_e4m3fnuz}
LARGEST = {"fp8e4nv": 448.0, "fp8e4b8": 240.0}
ITEM_BYTES = {"f16": 2, "u8": 1}


def part_bytes(kernel: Linear) -> dict[str, int]:
    """Return the size of each array of a weight."""
    return {name: ITEM_BYTES[dtype] * int(np.prod(shape)) for name, dtype, shape in kernel.parts}


def pack_dense(w: Array, kernel: Linear) -> npt.NDArray[np.float16]:
    """Return f16[n, k] of a weight in any float dtype, held within f16's range."""
    _same_shape(w, (kernel.n, kernel.k))
    out = np.empty((kernel.n, kernel.k), np.float16)
    for rows in slabs(kernel):
        out[rows] = np.clip(w[rows].astype(np.float32), -F16_MAX, F16_MAX)
    return out


def pack_codes(q: Array, kernel: Linear) -> Array:
    """Return a weight's codes as the kernel reads them, u8[n, k * bits / 8].

    Shapes: q i8[n, k] at 8 bits, u8[n, k] with codes 0..15 at 4 bits.
    Raises: TargetRefused for a code that the grid does not have.
    """
    _same_shape(q, (kernel.n, kernel.k))
    parts, zero = 16 // kernel.bits, stored_zero(kernel)
    out = np.empty((kernel.n, kernel.k * kernel.bits // 8), np.uint8)
    for rows in slabs(kernel):
        codes = q[rows].astype(np.int16) + zero
        if codes.min(initial=0) < 0 or codes.max(initial=0) >= 1 << kernel.bits:
            raise TargetRefused(
                f"a {kernel.bits}-bit weight holds codes from {codes.min() - zero} to {codes.max() - zero}",
                hint=f"choose from {-zero} to {(1 << kernel.bits) - 1 - zero}",
            )
        split = codes.astype("<u2").reshape(len(codes), -1, parts, kernel.group // parts)
        pairs = np.zeros_like(split[:, :, 0])
        for part in range(parts):
            pairs |= split[:, :, part] << (part * kernel.bits)
        out[rows] = pairs.view(np.uint8).reshape(len(codes), -1)
    return out


def stored_zero(kernel: Linear) -> int:
    """Return what is added to a code before it is stored, so that none is negative."""
    return 128 if kernel.bits == 8 else 0


def pack_groups(values: Array, kernel: Linear) -> npt.NDArray[np.float16]:
    """Return scales or offsets [n, k / block] as the kernel reads them, f16[k / group, n16].

    `block` may be a multiple of the kernel's group; the value is then repeated.
    Raises: TargetRefused if blocks are smaller than groups, or hold what f16 cannot.
    """
    groups = kernel.k // kernel.group
    if len(values) != kernel.n or groups % values.shape[1]:
        raise TargetRefused(
            f"scales of shape {values.shape} do not fit {kernel.n} rows of {groups} groups of {kernel.group}",
            hint="quantize in blocks of 32 columns or a multiple",
        )
    if not float(np.abs(values).max(initial=0.0)) <= F16_MAX:
        raise TargetRefused("a weight has a scale or an offset that f16 cannot hold")
    aligned = -(-kernel.n // SCALE_ALIGNMENT) * SCALE_ALIGNMENT
    out = np.zeros((groups, aligned), np.float16)
    out[:, : kernel.n] = np.repeat(values.astype(np.float16), groups // values.shape[1], axis=1).T
    return out


def unpack(parts: Mapping[str, Array], kernel: Linear) -> npt.NDArray[np.float64]:
    """Return the weight [n, k] that packed arrays stand for, exactly, before it is rounded to f16."""
    weight = parts["weight"]
    if kernel.bits == 16:
        return weight.astype(np.float64)
    parts_of_group = 16 // kernel.bits
    pairs = np.ascontiguousarray(weight).view("<u2").reshape(kernel.n, -1, kernel.group // parts_of_group)
    shifted = [(pairs >> (part * kernel.bits)) & ((1 << kernel.bits) - 1) for part in range(parts_of_group)]
    codes = np.stack(shifted, axis=2).reshape(kernel.n, kernel.k).astype(np.float64)
    codes -= 128 if kernel.bits == 8 else 8 if kernel.symmetric else 0
    spread = {
        name: np.repeat(parts[name][:, : kernel.n].T.astype(np.float64), kernel.group, axis=1)
        for name in parts
        if name != "weight"
    }
    return codes * spread["scale"] + spread.get("offset", 0.0)


def slabs(kernel: Linear) -> Iterator[slice]:
    """Yield ranges of rows that are small beside a large weight."""
    step = max(1, SLAB_ELEMENTS // kernel.k)
    for first in range(0, kernel.n, step):
        yield slice(first, min(first + step, kernel.n))


def _same_shape(w: Array, shape: tuple[int, int]) -> None:
    assert w.shape == shape, f"the weight is {w.shape}, the kernel takes {shape}"


def pack_fp8(w: Array, kernel: Fp8Linear, form: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return codes u8[n, k] and scales of a weight [n, k] rounded to e4m3, in the `form` that Triton names.

    A row's, or a block's, largest value becomes the largest of the form.
    Raises: TargetRefused for a form that is not e4m3's.
    """
    dtype = e4m3(form)
    _same_shape(w, (kernel.n, kernel.k))
    largest = LARGEST[form]
    codes, scale = np.empty(w.shape, np.uint8), np.empty(kernel.scale_shape, np.float32)
    step = COLUMNS if kernel.in_blocks else max(1, SLAB_ELEMENTS // kernel.k)
    for first in range(0, kernel.n, step):
        rows = slice(first, min(first + step, kernel.n))
        slab = w[rows].astype(np.float32)
        if kernel.in_blocks:
            padded = np.pad(np.abs(slab).max(axis=0), (0, -kernel.k % COLUMNS))
            scale[first // COLUMNS] = _nonzero(padded.reshape(-1, COLUMNS).max(axis=1) / np.float32(largest))
            by = np.repeat(scale[first // COLUMNS], COLUMNS)[None, : kernel.k]
        else:
            scale[rows] = _nonzero(np.abs(slab).max(axis=1) / np.float32(largest))
            by = scale[rows, None]
        codes[rows] = np.clip(slab / by, -largest, largest).astype(dtype).view(np.uint8)
    return codes, scale


def pack_int8(w: Array, kernel: Int8Linear) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return codes i8[n, k] from -127 to 127 and scales f32[n] of a weight [n, k]."""
    _same_shape(w, (kernel.n, kernel.k))
    codes, scale = np.empty(w.shape, np.int8), np.empty(kernel.n, np.float32)
    step = max(1, SLAB_ELEMENTS // kernel.k)
    for first in range(0, kernel.n, step):
        rows = slice(first, min(first + step, kernel.n))
        slab = w[rows].astype(np.float32)
        scale[rows] = _nonzero(np.abs(slab).max(axis=1) / np.float32(127))
        codes[rows] = np.rint(slab / scale[rows, None])
    return codes, scale


def fnuz_of(codes: npt.NDArray[np.uint8], scale: Array) -> tuple[npt.NDArray[np.uint8], Array]:
    """Return a weight given in e4m3 'fn' as one in 'fnuz', exactly.

    The same bits mean half as much, so that scales double; but -0 of the one is NaN of the other.
    Raises: TargetRefused for NaN, which 'fn' spells 0x7f and 0xff, and for which 'fnuz' has a number.
    """
    if ((codes & 0x7F) == 0x7F).any():
        raise TargetRefused("an fp8 weight holds NaN")
    return np.where(codes == 0x80, 0, codes).astype(np.uint8), scale * 2


def e4m3(form: str) -> np.dtype[Any]:
    """Return numpy's dtype of the form of e4m3 that Triton calls `form`.

    Raises: TargetRefused for another form.
    """
    if form not in E4M3_FORMS:
        raise TargetRefused(f"no e4m3 form '{form}'; choose from {', '.join(E4M3_FORMS)}")
    found: np.dtype[Any] = np.dtype(E4M3_FORMS[form])
    return found


def _nonzero(scale: Array) -> Array:
    return np.where(scale == 0, np.float32(1), scale)
