"""`mma.sync`, and the loads and stores of its fragments, `ldmatrix` and `stmatrix`."""

import re

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.instructions.fragments import (
    AT,
    ELEMENTS,
    GROUP,
    WARP,
    accumulate,
    accumulator_places,
    element_bytes,
    gather_a,
    gather_b,
)
from tests.ptx.machine import Indices, Machine, Mask
from tests.ptx.types import TYPES, Array, Type

ROW_BYTES = 16
SHAPE = re.compile(r"m16n8k(\d+)")


def multiply(decoding: Decoding) -> Run:
    """`mma.sync.aligned.m16n8kK`: D = A B + C for each warp."""
    decoding.need("sync")
    decoding.need("aligned")
    k = int(SHAPE.fullmatch(decoding.match("m16n8k") or "m16n8k0")[1])  # type: ignore[index]
    decoding.need("row")
    decoding.need("col")
    decoding.skip("satfinite")
    total = TYPES[decoding.need("f32", "f16", "s32")]
    element, other = decoding.need(*ELEMENTS), decoding.need(*ELEMENTS)
    if TYPES[decoding.need("f32", "f16", "s32")] is not total:
        raise decoding.refuse("C and D of two types are not executed")
    decoding.finish(4)
    a, b = ([decoding.source_of(part, TYPES["b32"]) for part in decoding.vector(index)] for index in (1, 2))
    held = TYPES["f16x2"] if total.name == "f16" else total
    c = [decoding.source_of(part, held) for part in decoding.vector(3)]
    d = [decoding.sink_of(part, held) for part in decoding.vector(0)]
    per_register = 4 // element_bytes(element)
    if k * 16 != WARP * per_register * len(a) or k * 8 != WARP * per_register * len(b):
        raise decoding.refuse("the registers do not hold the matrices")

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "mma")
        left = gather_a([source(machine) for source in a], element, k)
        right = gather_b([source(machine) for source in b], other, k)
        found = accumulate(_gather_total([source(machine) for source in c], total), left, right)
        machine.counts.matrix_flops += 2 * 16 * 8 * k * len(left)
        for sink, value in zip(d, _scatter_total(found, total), strict=True):
            sink(machine, value, None)

    return run


def _gather_total(registers: list[Array], total: Type) -> Array:
    warps = len(registers[0]) // WARP
    found = np.zeros((warps, 16, 8), np.int32 if total.name == "s32" else np.float32)
    if total.name == "f16":
        for index, register in enumerate(registers):
            for part in range(2):
                found[:, GROUP + 8 * index, AT * 2 + part] = register[:, part].reshape(warps, WARP)
        return found
    for index, register in enumerate(registers):
        found[(slice(None), *accumulator_places(index))] = register.reshape(warps, WARP)
    return found


def _scatter_total(found: Array, total: Type) -> list[Array]:
    if total.name == "f16":
        rounded = found.astype(np.float16)
        return [
            np.stack([rounded[:, GROUP + 8 * index, AT * 2 + part].reshape(-1) for part in range(2)], axis=1)
            for index in range(2)
        ]
    return [found[(slice(None), *accumulator_places(index))].reshape(-1) for index in range(4)]


def _matrices(decoding: Decoding) -> tuple[int, bool]:
    """Read the modifiers that ldmatrix and stmatrix share: how many matrices, transposed or not."""
    decoding.need("sync")
    decoding.need("aligned")
    decoding.need("m8n8")
    count = int(decoding.need("x1", "x2", "x4")[1:])
    transposed = decoding.take("trans") is not None
    decoding.need("shared", "shared::cta")
    decoding.need("b16")
    decoding.finish(2)
    return count, transposed


def _rows(machine: Machine, addresses: Indices, count: int) -> tuple[Indices, Indices]:
    """Return the rows of shared memory of `count` matrices of each warp, and the lanes that point at them."""
    lanes = machine.lane.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
    return machine.shared.locate(addresses[lanes], ROW_BYTES, machine.cta[lanes], lanes), lanes


def load_matrices(decoding: Decoding) -> Run:
    """`ldmatrix`: lane l gets of each 8 x 8 matrix row l / 4, columns 2 (l % 4) and the next."""
    count, transposed = _matrices(decoding)
    sinks = [decoding.sink_of(part, TYPES["b32"]) for part in decoding.vector(0)]
    address = decoding.address(1)
    if len(sinks) != count:
        raise decoding.refuse(f"{count} registers are expected")

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "ldmatrix")
        rows, lanes = _rows(machine, address(machine), count)
        raw = machine.shared.read(rows, ROW_BYTES, machine.warp[lanes], lanes)
        matrices = np.ascontiguousarray(raw).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        packed = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, WARP)
        for index, sink in enumerate(sinks):
            sink(machine, np.ascontiguousarray(packed[:, index]).reshape(-1), None)

    return run


def store_matrices(decoding: Decoding) -> Run:
    """`stmatrix`: the reverse of ldmatrix."""
    count, transposed = _matrices(decoding)
    sources = [decoding.source_of(part, TYPES["b32"]) for part in decoding.vector(1)]
    address = decoding.address(0)
    if len(sources) != count:
        raise decoding.refuse(f"{count} registers are expected")

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "stmatrix")
        rows, lanes = _rows(machine, address(machine), count)
        whole = [np.broadcast_to(source(machine), (machine.lanes,)).reshape(-1, WARP) for source in sources]
        packed = np.ascontiguousarray(np.stack(whole, axis=1))
        matrices = packed.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        raw = np.ascontiguousarray(matrices).reshape(-1, 8).view(np.uint8)
        machine.shared.write(rows, raw, machine.warp[lanes], lanes)

    return run


DECODERS: dict[str, Decoder] = {"mma": multiply, "ldmatrix": load_matrices, "stmatrix": store_matrices}
