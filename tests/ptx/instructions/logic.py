"""Operations on bits, comparisons and selections."""

import operator
from collections.abc import Callable
from functools import reduce

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.instructions.arithmetic import evaluate, flush
from tests.ptx.machine import Machine, Mask
from tests.ptx.syntax import Vector
from tests.ptx.types import TYPES, UNSIGNED, Array

U32, PRED = TYPES["u32"], TYPES["pred"]
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
BOOLEAN: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def bitwise(operation: Callable[..., Array], count: int = 2) -> Decoder:
    """Return the decoder of an operation on bits or predicates."""

    def decode(decoding: Decoding) -> Run:
        kind = decoding.type()
        decoding.finish(count + 1)
        sources = [decoding.source(index + 1, kind) for index in range(count)]
        return evaluate(decoding.sink(0, kind), operation, sources)

    return decode


def shift_left(value: Array, by: Array) -> Array:
    """Shift; all bits leave where `by` is the width or more."""
    bits = value.dtype.itemsize * 8
    moved: Array = value << np.minimum(by, bits - 1).astype(value.dtype)
    return np.where(by >= bits, value.dtype.type(0), moved)


def shift_right(value: Array, by: Array) -> Array:
    """Shift; signed numbers keep their sign."""
    bits = value.dtype.itemsize * 8
    moved: Array = value >> np.minimum(by, bits - 1).astype(value.dtype)
    return moved if value.dtype.kind == "i" else np.where(by >= bits, value.dtype.type(0), moved)


def shift(operation: Callable[[Array, Array], Array]) -> Decoder:
    """Return the decoder of `shl` or `shr`."""

    def decode(decoding: Decoding) -> Run:
        kind = decoding.type()
        decoding.finish(3)
        return evaluate(
            decoding.sink(0, kind), operation, [decoding.source(1, kind), decoding.source(2, U32)]
        )

    return decode


def funnel_shift(decoding: Decoding) -> Run:
    """`shf`: shift the 64 bits of two registers, b above a, and keep one half."""
    right = decoding.need("l", "r") == "r"
    wrap = decoding.need("wrap", "clamp") == "wrap"
    decoding.need("b32")
    decoding.finish(4)

    def operation(a: Array, b: Array, c: Array) -> Array:
        by = (c & np.uint32(31) if wrap else np.minimum(c, np.uint32(32))).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        found = both >> by if right else (both << by) >> np.uint64(32)
        return found.astype(np.uint32)

    return evaluate(decoding.sink(0, U32), operation, [decoding.source(index, U32) for index in (1, 2, 3)])


def extract(decoding: Decoding) -> Run:
    """`bfe`: take a field of bits, extended by its sign where the type has one."""
    kind = decoding.type()
    decoding.finish(4)
    bits = kind.bits

    def operation(value: Array, position: Array, length: Array) -> Array:
        at, size = (np.minimum(each & 255, bits).astype(np.int64) for each in (position, length))
        raw = np.ascontiguousarray(value).view(UNSIGNED[bits])
        # Up against the top, then down again, so that the field's own highest bit is the sign.
        end = np.minimum(at + size, bits)
        high = shift_left(raw, (bits - end).astype(np.uint32))
        field = np.ascontiguousarray(high).view(value.dtype)
        taken = shift_right(field, (bits - size).astype(np.uint32))
        missing = (at + size - end).astype(np.uint32)
        # Past the top a signed field is filled with the sign, an unsigned one with zeros.
        taken = np.where(missing > 0, shift_right(value, at.astype(np.uint32)), taken)
        return np.where(size == 0, value.dtype.type(0), taken)

    sources = [decoding.source(1, kind), decoding.source(2, U32), decoding.source(3, U32)]
    return evaluate(decoding.sink(0, kind), operation, sources)


def insert(decoding: Decoding) -> Run:
    """`bfi`: put the low bits of a into a field of b."""
    kind = decoding.type()
    decoding.finish(5)
    dtype = UNSIGNED[kind.bits]

    def operation(a: Array, b: Array, position: Array, length: Array) -> Array:
        at, size = (np.minimum(each & 255, kind.bits).astype(np.uint32) for each in (position, length))
        field = ~shift_left(np.full(size.shape, (1 << kind.bits) - 1, dtype), size)
        mask = shift_left(field, at)
        return (b & ~mask) | (shift_left(a, at) & mask)

    sources = [decoding.source(1, kind), decoding.source(2, kind)]
    sources += [decoding.source(3, U32), decoding.source(4, U32)]
    return evaluate(decoding.sink(0, kind), operation, sources)


def logic3(decoding: Decoding) -> Run:
    """`lop3`: any function of three bits, given by its truth table."""
    kind = decoding.type()
    decoding.finish(5)
    table = decoding.immediate(4)

    def operation(a: Array, b: Array, c: Array) -> Array:
        terms = [
            (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            for row in range(8)
            if table >> row & 1
        ]
        return reduce(operator.or_, terms, (a ^ a) & b & c)

    return evaluate(decoding.sink(0, kind), operation, [decoding.source(index, kind) for index in (1, 2, 3)])


def permute(decoding: Decoding) -> Run:
    """`prmt`: choose 4 of the 8 bytes of two registers, or a byte's sign."""
    decoding.need("b32")
    decoding.finish(4)

    def operation(a: Array, b: Array, choice: Array) -> Array:
        a, b, choice = np.broadcast_arrays(a, b, choice)
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        found = np.zeros(len(a), np.uint32)
        for index in range(4):
            nibble = (choice >> np.uint32(4 * index)) & np.uint32(15)
            byte = (both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte >= 128, 255, 0).astype(np.uint32)
            chosen = np.where(nibble >= 8, sign, byte.astype(np.uint32))
            found |= chosen << np.uint32(8 * index)
        return found

    return evaluate(decoding.sink(0, U32), operation, [decoding.source(index, U32) for index in (1, 2, 3)])


def compare(decoding: Decoding) -> Run:
    """`setp`: compare; a further predicate may be combined with the result."""
    kind = decoding.type()
    name = decoding.need(*COMPARISONS, *UNSIGNED_NAMES, *(f"{each}u" for each in COMPARISONS), "num", "nan")
    combine = decoding.take(*BOOLEAN)
    flushes = decoding.take("ftz") is not None
    decoding.finish(3 if combine is None else 4)
    first, second = decoding.pair(0)
    sinks = [decoding.sink_of(each, PRED) for each in (first, second) if each is not None]
    a, b = decoding.source(1, kind), decoding.source(2, kind)
    other = None if combine is None else decoding.source(3, PRED)

    def run(machine: Machine, mask: Mask) -> None:
        left, right = a(machine), b(machine)
        if flushes:
            left, right = flush(left), flush(right)
        truth = _compare(name, left, right)
        for sink, value in zip(sinks, (truth, ~truth), strict=False):
            combined = value if other is None else BOOLEAN[combine or ""](value, other(machine))
            sink(machine, combined, mask)

    return run


def _compare(name: str, left: Array, right: Array) -> Array:
    if left.dtype.kind != "f":
        return COMPARISONS[UNSIGNED_NAMES.get(name, name)](left, right)
    unordered = np.isnan(left) | np.isnan(right)
    if name in {"num", "nan"}:
        return unordered if name == "nan" else ~unordered
    if name in COMPARISONS:
        return COMPARISONS[name](left, right) & ~unordered
    return COMPARISONS[name[:-1]](left, right) | unordered


def select(decoding: Decoding) -> Run:
    """`selp`: a where the predicate holds, else b."""
    kind = decoding.type()
    decoding.finish(4)
    sources = [decoding.source(3, PRED), decoding.source(1, kind), decoding.source(2, kind)]
    return evaluate(decoding.sink(0, kind), np.where, sources)


def move(decoding: Decoding) -> Run:
    """`mov`: copy, pack a vector into a register or unpack it."""
    kind = decoding.type()
    decoding.finish(2)
    target, origin = decoding.operands
    if isinstance(origin, Vector):
        return _pack(decoding, origin)
    if isinstance(target, Vector):
        return _unpack(decoding, target)
    return evaluate(decoding.sink(0, kind), lambda value: value, [decoding.source(1, kind)])


def _pack(decoding: Decoding, origin: Vector) -> Run:
    kind = TYPES["b" + decoding.instruction.modifiers[-1][1:]]
    part = TYPES[f"b{kind.bits // len(origin.parts)}"]
    sources = [decoding.source_of(each, part) for each in origin.parts]

    def operation(*values: Array) -> Array:
        joined = np.stack(np.broadcast_arrays(*values), axis=1)
        packed: Array = np.ascontiguousarray(joined).view(kind.value)[:, 0]
        return packed

    return evaluate(decoding.sink(0, kind), operation, sources)


def _unpack(decoding: Decoding, target: Vector) -> Run:
    kind = TYPES["b" + decoding.instruction.modifiers[-1][1:]]
    part = TYPES[f"b{kind.bits // len(target.parts)}"]
    source = decoding.source(1, kind)
    sinks = [decoding.sink_of(each, part) for each in target.parts]

    def run(machine: Machine, mask: Mask) -> None:
        values = np.ascontiguousarray(source(machine)).view(part.value).reshape(-1, len(sinks))
        for column, sink in enumerate(sinks):
            sink(machine, np.ascontiguousarray(values[:, column]), mask)

    return run


def count_bits(decoding: Decoding) -> Run:
    """`popc`: how many bits are set."""
    kind = decoding.type()
    decoding.finish(2)
    return evaluate(
        decoding.sink(0, U32),
        lambda value: np.bitwise_count(value).astype(np.uint32),
        [decoding.source(1, kind)],
    )


DECODERS: dict[str, Decoder] = {
    "and": bitwise(np.bitwise_and),
    "or": bitwise(np.bitwise_or),
    "xor": bitwise(np.bitwise_xor),
    "not": bitwise(np.invert, 1),
    "shl": shift(shift_left),
    "shr": shift(shift_right),
    "shf": funnel_shift,
    "bfe": extract,
    "bfi": insert,
    "lop3": logic3,
    "prmt": permute,
    "setp": compare,
    "selp": select,
    "mov": move,
    "popc": count_bits,
}
