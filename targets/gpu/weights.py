"""Packs a program's weights into the arrays that the GPU kernels read, one array at a time."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.targets.constants import Array, array, dense, grid_of, name_of, quants, shape_of
from tokc.targets.gpu.kernels.fp8_linear import Fp8Linear
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.packing import fnuz_of, pack_codes, pack_dense, pack_groups, part_bytes
from tokc.targets.nodes import integer, required

MATRIX = 2
GROUP = 32
FNUZ = "fp8e4b8"  # Triton's name of the form of e4m3 that is not 'fn'
GRIDS = "GPU targets run int4 (symmetric around 8, or with an offset), symmetric int8, and f16"


def vector(value: ir.Value) -> Tensor:
    """Return a small f32 tensor as it is: norm weights, rope tables, biases."""
    shape = shape_of(value)
    return Tensor(value.name or "", "f32", shape, 4 * int(np.prod(shape)), lambda: dense(value))


def bias(node: ir.Node, index: int) -> Tensor | None:
    """Return a projection's bias, None if it has none."""
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else vector(value)


def plain(value: ir.Value) -> tuple[tuple[Tensor, ...], Linear]:
    """Return an f16 weight, stored plain or on a grid that no kernel decodes, and a kernel that reads it."""
    rows, columns = _matrix(value)
    kernel = Linear(rows, columns, 16, symmetric=True, bias=False, x_stride=columns, y_dtype="f16")
    return _tensors(name_of(value), kernel, {"weight": lambda: pack_dense(dense(value), kernel)}), kernel


def quantized(node: ir.Node) -> tuple[tuple[Tensor, ...], Linear]:
    """Return the arrays of a quantized weight, and a kernel that reads them.

    Raises: TargetRefused for a grid that no kernel decodes.
    """
    q, scale = required(node.inputs[1]), required(node.inputs[2])
    offset = node.inputs[3] if len(node.inputs) > 3 else None
    rows, columns = _matrix(q)
    bits, symmetric = grid_of(node, lacks="no GPU kernel decodes", hint=GRIDS)
    kernel = Linear(rows, columns, bits, symmetric, bias=False, x_stride=columns, y_dtype="f16", group=GROUP)
    loads: dict[str, Callable[[], Array]] = {
        "weight": lambda: pack_codes(quants(q), kernel),
        "scale": lambda: pack_groups(array(scale), kernel),
    }
    if offset is not None:
        loads["offset"] = lambda: pack_groups(array(offset), kernel)
    return _tensors(name_of(q), kernel, loads), kernel


def multiplied(node: ir.Node, architecture: str) -> tuple[tuple[Tensor, ...], Linear]:
    """Return the arrays of the weight that an op multiplies by, and a kernel that reads them.

    Raises: TargetRefused for a grid that no kernel decodes, or if activations are to be on a grid.
    """
    on_a_grid = node.op_type in {"QuantLinear", "QuantMoeLinear"}
    if on_a_grid and integer(node, "act_group", GROUP):
        raise TargetRefused(
            "GPU targets multiply activations in f16, not on a grid",
            where=f"node '{node.name}'",
            hint="use quantize-weights{act_group=0}",
        )
    tensors, kernel = quantized(node) if on_a_grid else plain(required(node.inputs[1]))
    return tensors, replace(kernel, architecture=architecture)


def float8(node: ir.Node, form: str) -> tuple[tuple[Tensor, ...], Fp8Linear]:
    """Return codes and scales of a weight in e4m3, a scale a row, in the device's `form`, and its kernel."""
    q, scale = required(node.inputs[1]), required(node.inputs[2])
    rows, columns = _matrix(q)
    kernel = Fp8Linear(rows, columns, bias=False, x_stride=columns, y_dtype="f16")

    def packed() -> tuple[Array, Array]:
        found = np.ascontiguousarray(array(q)).view(np.uint8), array(scale).reshape(-1)
        return fnuz_of(*found) if form == FNUZ else found

    name = name_of(q)
    codes = Tensor(name, "u8", (rows, columns), rows * columns, lambda: packed()[0])
    return (codes, Tensor(f"{name}.scale", "f32", (rows,), 4 * rows, lambda: packed()[1])), kernel


def _tensors(name: str, kernel: Linear, loads: dict[str, Callable[[], Array]]) -> tuple[Tensor, ...]:
    sizes = part_bytes(kernel)
    return tuple(
        Tensor(name if part == "weight" else f"{name}.{part}", dtype, shape, sizes[part], loads[part])
        for part, dtype, shape in kernel.parts
    )


def _matrix(value: ir.Value) -> tuple[int, int]:
    shape = shape_of(value)
    assert len(shape) == MATRIX, f"'{value.name}' is no matrix"
    return shape[0], shape[1]
