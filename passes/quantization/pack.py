"""Quantized weights as tensors of the IR: uint4 packed two a byte, int8, and fp16 scales.

ONNX's opset has no codes of 2 or 3 bits; they are uint4 codes, and the op that reads them says their width
in its attribute `bits`. Prices count the width, artifacts store it.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from tokc.passes.quantization.grid import NARROW, WIDTHS, Codes, Grid, Quantized


@dataclass(frozen=True)
class Packed:
    """Hold the tensors of one quantized weight."""

    codes: ir.TensorProtocol
    scale: ir.TensorProtocol
    offset: ir.TensorProtocol | None = None


def pack(name: str, quantized: Quantized) -> Packed:
    """Make the tensors `name`.q, `name`.scale and, on an asymmetric grid, `name`.offset."""
    offset = None if quantized.offset is None else ir.Tensor(quantized.offset, name=f"{name}.offset")
    scale = ir.Tensor(quantized.scale, name=f"{name}.scale")
    return Packed(codes_tensor(f"{name}.q", quantized.codes), scale, offset)


def unpack(packed: Packed) -> Quantized:
    """Return the arrays of packed tensors, one code an element."""
    codes = packed.codes.numpy()
    if codes.dtype == ml_dtypes.uint4:
        codes = codes.view(np.uint8)
    offset = None if packed.offset is None else packed.offset.numpy()
    return Quantized(codes, packed.scale.numpy(), offset)


def grid_of(packed: Packed, *, zero_point: int, block_size: int, bits: int = 0) -> Grid | None:
    """Return the grid that the tensors lie on, or None where it is not one that the kernels know.

    `bits` is the width of a code, 0 where it is that of its type.
    """
    if packed.codes.dtype == ir.DataType.INT8:
        known = zero_point == 0 and packed.offset is None
        return Grid(bits=8, group=block_size) if known else None
    if packed.codes.dtype != ir.DataType.UINT4:
        return None
    if bits not in {0, *WIDTHS[:-1]}:
        return None
    symmetric = packed.offset is None
    grid = Grid(bits=bits or NARROW, group=block_size, symmetric=symmetric)
    return grid if zero_point == grid.zero_point else None


def codes_tensor(name: str, codes: Codes) -> ir.TensorProtocol:
    """Return int8 codes as they are, codes of 4 bits and less packed two a byte."""
    if codes.dtype == np.int8:
        return ir.Tensor(codes, name=name)
    flat = codes.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return ir.PackedTensor(flat[0::2] | flat[1::2] << 4, ir.DataType.UINT4, shape=codes.shape, name=name)
