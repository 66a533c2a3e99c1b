"""`wgmma`: products of matrices that four warps start together and wait for.

What a wgmma reads is taken when it is issued, and registers must not have been written since the last fence.
Until the wait its results are undefined registers, nobody may write the tiles in shared memory, and the
registers of A must stay. Where a CTA has several warpgroups the tiles may be written after a barrier only,
for each waits for its own products.
Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"; "Matrix Descriptor Format".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run, Source
from tests.ptx.faults import Race, UndefinedRegister
from tests.ptx.instructions.fragments import AT, ELEMENTS, GROUP, WARP, accumulate, element_bytes, numbers
from tests.ptx.machine import WARPGROUP, Indices, Machine, Mask, Products, place
from tests.ptx.shared import CHUNK
from tests.ptx.syntax import Register, Vector
from tests.ptx.types import TYPES, Array, Type

SHAPE = re.compile(r"m64n(\d+)k(\d+)")
M, WARPS = 64, 4
# Bytes of a row of the swizzled pattern by the descriptor's code, and the address bits that are flipped.
SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}
WARP_ROW = 16 * np.arange(WARPS)[:, None]


@dataclass(frozen=True)
class Tile:
    """An operand in shared memory: [rows, k], rows being those of A or the columns of B.

    `transposed`: the elements of one k are neighbours, not those of one row.
    """

    rows: int
    k: int
    element: str
    transposed: bool

    def chunks(self, descriptors: Indices) -> Indices:
        """Return the addresses of its CHUNKs, [warpgroups, lines, chunks], a line being a row or a k."""
        start, leading, stride = ((descriptors >> at & 0x3FFF) << 4 for at in (0, 16, 32))
        width, flipped = SWIZZLES[int(descriptors[0] >> 62 & 3)]
        start, leading, stride = (each[:, None, None] for each in (start, leading, stride))
        if self.transposed:
            k = np.arange(self.k)[:, None]
            byte = CHUNK * np.arange(self.rows * element_bytes(self.element) // CHUNK)
            # Without a swizzle the two strides change places (CUTLASS, mma_sm90_desc.hpp).
            across, along = (leading, stride) if flipped else (stride, leading)
            offset = byte // width * across + k // 8 * along + k % 8 * width + byte % width
        else:
            row = np.arange(self.rows)[:, None]
            chunk = np.arange(self.k * element_bytes(self.element) // CHUNK)
            step = CHUNK if flipped else leading
            offset = row // 8 * stride + row % 8 * width + chunk * step
        address: Indices = start + offset
        address ^= (address >> 7 & flipped) << 4
        return address

    def read(self, machine: Machine, descriptors: Indices, products: Products) -> Array:
        """Return [warpgroups, rows, k] numbers, and keep the bytes from being written."""
        address = self.chunks(descriptors)
        per_group = address[0].size
        lanes = np.repeat(machine.lane[::WARPGROUP], per_group)
        rows = machine.shared.locate(address.reshape(-1), CHUNK, machine.cta[lanes], lanes)
        raw = machine.shared.hold(rows, lanes)
        products.rows.append(rows)
        found = numbers(raw.reshape(*address.shape[:2], -1), self.element)
        return found.swapaxes(1, 2) if self.transposed else found


@dataclass(frozen=True)
class Product:
    """The operands of one wgmma.mma_async, decoded."""

    n: int
    k: int
    element: str
    total: Type
    results: tuple[Register, ...]
    a_registers: tuple[Register, ...]
    a_tile: tuple[Source, Tile] | None
    b_tile: tuple[Source, Tile]
    accumulates: Source
    scales: tuple[int, int]

    def __call__(self, machine: Machine, mask: Mask) -> None:
        """Issue it."""
        machine.converged(mask, "wgmma.mma_async")
        products = machine.products
        a = self._a(machine, products)
        source, tile = self.b_tile
        b = tile.read(machine, _descriptors(machine, source), products)
        total = accumulate(self._total(machine), a * self.scales[0], b.swapaxes(1, 2) * self.scales[1])
        machine.counts.matrix_flops += 2 * M * self.n * self.k * len(total)
        for index, register in enumerate(self.results):
            products.results[register.index] = self._scatter(total, index)
            machine.registers[register.index] = None

    def _a(self, machine: Machine, products: Products) -> Array:
        if self.a_tile is not None:
            source, tile = self.a_tile
            return tile.read(machine, _descriptors(machine, source), products)
        share = 4 // element_bytes(self.element)
        found = None
        for index, register in enumerate(self.a_registers):
            raw = _fenced(machine, register)
            products.operands[register.index] = raw
            value = numbers(raw, self.element).reshape(-1, WARPS, WARP, share)
            if found is None:
                found = np.zeros((len(value), M, self.k), value.dtype)
            for part in range(share):
                row, column = GROUP + 8 * (index % 2), AT * share + part + 4 * share * (index // 2)
                found[:, WARP_ROW + row, column] = value[..., part]
        assert found is not None, "A has registers"
        return found

    def _total(self, machine: Machine) -> Array:
        groups = machine.lanes // WARPGROUP
        dtype = np.int32 if self.total.name == "s32" else np.float32
        found = np.zeros((groups, M, self.n), dtype)
        keeps = np.broadcast_to(self.accumulates(machine), (machine.lanes,))[::WARPGROUP]
        if not keeps.any():
            return found
        for index, register in enumerate(self.results):
            raw = _in_flight(machine, register)
            value = self.total.decode(_fenced(machine, register) if raw is None else raw)
            for part, (row, column) in enumerate(self._places(index)):
                numbers_ = value if self.total.packed == 1 else value[:, part]
                found[:, WARP_ROW + row, column] = numbers_.reshape(-1, WARPS, WARP)
        return np.where(keeps[:, None, None], found, dtype(0))

    def _places(self, index: int) -> Sequence[tuple[Array, Array]]:
        """Return the rows, of a warp's 16, and the columns of each number of register `index`."""
        if self.total.packed == 2:
            row, column = GROUP + 8 * (index % 2), 8 * (index // 2) + 2 * AT
            return (row, column), (row, column + 1)
        return ((GROUP + 8 * (index // 2 % 2), 8 * (index // 4) + 2 * AT + index % 2),)

    def _scatter(self, total: Array, index: int) -> Array:
        parts = [total[:, WARP_ROW + row, column].reshape(-1) for row, column in self._places(index)]
        value = parts[0] if len(parts) == 1 else np.stack(parts, axis=1).astype(np.float16)
        return self.total.encode(np.ascontiguousarray(value))


def _descriptors(machine: Machine, source: Source) -> Indices:
    each = source(machine).reshape(-1, WARPGROUP)
    if (each != each[:, :1]).any() or (each[:, 0] >> np.uint64(62) != each[0, 0] >> np.uint64(62)).any():
        raise UndefinedRegister("the threads of a warpgroup give different descriptors")
    found = each[:, 0].astype(np.int64)
    assert not (found >> 49 & 7).any(), "a descriptor with a base offset is not executed"
    return found


def _fenced(machine: Machine, register: Register) -> Array:
    """Read a register that must not have been written since the last wgmma.fence.

    But for a plain `mov`: compilers put copies there, to which the assembler gives the original's register.
    """
    raw = machine.read(register)
    if not machine.is_fenced(raw):
        raise Race(
            f"register '{register.name}' is written, and read by wgmma without a 'wgmma.fence' between"
        )
    return raw


def _in_flight(machine: Machine, register: Register) -> Array | None:
    """Return what a wgmma without a wait will write, which a further wgmma may add to."""
    for group in (machine.products, *reversed(machine.product_groups)):
        if register.index in group.results:
            return group.results[register.index]
    return None


def warpgroup(decoding: Decoding) -> Run:
    """All `wgmma` instructions."""
    what = decoding.need("mma_async", "fence", "commit_group", "wait_group")
    decoding.need("sync")
    decoding.need("aligned")
    if what == "mma_async":
        return _product(decoding)
    decoding.finish(1 if what == "wait_group" else 0)
    if what == "wait_group":
        return _wait(decoding.immediate(0))
    return _commit if what == "commit_group" else _fence


def _fence(machine: Machine, mask: Mask) -> None:
    machine.converged(mask, "wgmma.fence")
    machine.fence_registers()


def _commit(machine: Machine, mask: Mask) -> None:
    machine.converged(mask, "wgmma.commit_group")
    machine.product_groups.append(machine.products)
    machine.products = Products()


def _wait(left: int) -> Run:
    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "wgmma.wait_group")
        while len(machine.product_groups) > left:
            _complete(machine, machine.product_groups.popleft())

    return run


def _complete(machine: Machine, group: Products) -> None:
    for index, raw in group.operands.items():
        if machine.registers[index] is not raw:
            raise Race("a register of A is written while a wgmma without a wait still reads it")
    later = (*machine.product_groups, machine.products)
    for index, raw in group.results.items():
        if any(index in other.results for other in later):
            continue
        if machine.registers[index] is not None:
            raise Race("a register is written while a wgmma without a wait still writes it")
        machine.registers[index] = raw
        machine.fenced[place(raw)] = raw
    for rows in group.rows:
        machine.shared.release(rows, alone=machine.function.threads == WARPGROUP)
    for other in later:
        for rows in other.rows:
            machine.shared.keep_held(rows)


def _product(decoding: Decoding) -> Product:
    shape = SHAPE.fullmatch(decoding.match("m64n") or "")
    if shape is None:
        raise decoding.refuse("a shape m64nNkK is expected")
    n, k = int(shape[1]), int(shape[2])
    total = TYPES[decoding.need("f32", "f16", "s32")]
    total = TYPES["f16x2"] if total.name == "f16" else total
    element = decoding.need(*ELEMENTS)
    if decoding.need(*ELEMENTS) != element or k * element_bytes(element) != 32:
        raise decoding.refuse("A and B must have one type, and 32 bytes in a row")
    decoding.finish()
    results = _registers(decoding, 0)
    if len(results) * WARPGROUP * total.packed != M * n:
        raise decoding.refuse("the registers do not hold D")
    in_registers = isinstance(decoding.operands[1], Vector)
    flags = [decoding.immediate(index) for index in range(4, len(decoding.operands))]
    scales = (flags[0], flags[1]) if len(flags) >= 2 else (1, 1)
    # Which tiles may be transposed is said for those in shared memory alone, and for elements of 16 bits.
    transposed = [bool(flag) for flag in flags[2:]]
    a_transposed = not in_registers and bool(transposed) and transposed.pop(0)
    b_transposed = bool(transposed) and transposed.pop(0)
    descriptor = TYPES["u64"]
    a_tile = None if in_registers else (decoding.source(1, descriptor), Tile(M, k, element, a_transposed))
    return Product(
        n,
        k,
        element,
        total,
        results,
        _registers(decoding, 1) if in_registers else (),
        a_tile,
        (decoding.source(2, descriptor), Tile(n, k, element, b_transposed)),
        decoding.source(3, TYPES["pred"]),
        scales,
    )


def _registers(decoding: Decoding, index: int) -> tuple[Register, ...]:
    found = []
    for part in decoding.vector(index):
        if not isinstance(part, Register) or part.bits != 32:
            raise decoding.refuse("registers of 32 bits are expected")
        found.append(part)
    return tuple(found)


DECODERS: dict[str, Decoder] = {"wgmma": warpgroup}
