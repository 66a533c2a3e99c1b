"""Arithmetic on numbers, each operation rounded once."""

from collections.abc import Callable

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run, Sink, Source
from tests.ptx.machine import Machine, Mask
from tests.ptx.types import TYPES, Array, Type

Operation = Callable[..., Array]
# Rounding to nearest even, and what lets a GPU be less exact: we round to nearest.
INEXACT = ("rn", "approx", "full")
TINY = {16: np.float16(2**-14), 32: np.float32(2**-126), 64: np.float64(2**-1022)}


def flush(value: Array) -> Array:
    """Replace subnormal f32 by zero of the same sign, as `.ftz` asks."""
    return np.where(np.abs(value) < TINY[32], np.copysign(np.float32(0), value), value)


def evaluate(sink: Sink, operation: Operation, sources: list[Source]) -> Run:
    """Return what computes an operation elementwise."""
    if len(sources) == 1:
        first = sources[0]
        return lambda machine, mask: sink(machine, operation(first(machine)), mask)
    if len(sources) == 2:
        first, second = sources
        return lambda machine, mask: sink(machine, operation(first(machine), second(machine)), mask)

    def run(machine: Machine, mask: Mask) -> None:
        sink(machine, operation(*(source(machine) for source in sources)), mask)

    return run


def flushed(operation: Operation) -> Operation:
    """Flush the operands and the result."""
    return lambda *values: flush(operation(*(flush(value) for value in values)))


def _arithmetic(decoding: Decoding, kind: Type, operation: Operation, count: int) -> Run:
    if kind.kind in {"f", "bf"}:
        decoding.skip(*INEXACT)
        if decoding.take("ftz") and kind.name in {"f32", "f32x2"}:
            operation = flushed(operation)
        if decoding.take("sat"):
            inner = operation
            operation = lambda *values: np.fmin(np.fmax(inner(*values), kind.value(0)), kind.value(1))  # noqa: E731
    decoding.finish(count + 1)
    return evaluate(
        decoding.sink(0, kind), operation, [decoding.source(index + 1, kind) for index in range(count)]
    )


def simple(operation: Operation, count: int = 2) -> Decoder:
    """Return the decoder of an operation whose operands and result have one type."""
    return lambda decoding: _arithmetic(decoding, decoding.type(), operation, count)


def fused(kind: Type) -> Operation:
    """Return a * b + c, rounded once.

    The product is exact in f64, the sum is rounded to odd, so that rounding it again is exact (Boldo and
    Melquiond 2008).
    """

    def run(a: Array, b: Array, c: Array) -> Array:
        product = a.astype(np.float64) * b.astype(np.float64)
        addend = c.astype(np.float64)
        total = product + addend
        part = total - product
        error = (product - (total - part)) + (addend - part)
        if np.any(error):
            bits = np.ascontiguousarray(total).view(np.int64)
            inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
            bits = bits + np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
            total = bits.view(np.float64)
        return total.astype(kind.value)

    return run


def fma(decoding: Decoding) -> Run:
    """`fma`, in f32, f16, bf16 and their pairs; `fma.f32.f16` multiplies f16 and adds in f32."""
    kind = decoding.type()
    if kind.name in {"f16", "bf16"} and decoding.take("f32"):
        total = TYPES["f32"]
        decoding.skip(*INEXACT)
        decoding.finish(4)
        sources = [decoding.source(1, kind), decoding.source(2, kind), decoding.source(3, total)]
        return evaluate(decoding.sink(0, total), fused(total), sources)
    return fma_of(decoding, kind)


def fma_of(decoding: Decoding, kind: Type) -> Run:
    """Decode a * b + c where all have one type."""
    if kind.name == "f64":
        raise decoding.refuse("a product of f64 that is added to is not executed")
    operation = fused(kind)
    if decoding.take("relu"):
        inner = operation
        operation = lambda a, b, c: np.fmax(inner(a, b, c), kind.value(0))  # noqa: E731
    return _arithmetic(decoding, kind, operation, 3)


def multiply(decoding: Decoding) -> Run:
    """`mul` and `mul.lo`, `mul.hi`, `mul.wide` of integers."""
    kind = decoding.type()
    if kind.kind in {"f", "bf"} or kind.packed > 1:
        return _arithmetic(decoding, kind, np.multiply, 2)
    part = decoding.need("lo", "hi", "wide")
    decoding.finish(3)
    operation, result = _product(kind, part)
    return evaluate(decoding.sink(0, result), operation, [decoding.source(1, kind), decoding.source(2, kind)])


def _product(kind: Type, part: str) -> tuple[Operation, Type]:
    if part == "lo":
        return np.multiply, kind
    if kind.bits == 64:
        return _high_of_64, kind
    wide = TYPES[f"{kind.kind}{kind.bits * 2}"]
    if part == "wide":
        return lambda a, b: a.astype(wide.value) * b.astype(wide.value), wide
    shift = wide.value(kind.bits)
    return lambda a, b: ((a.astype(wide.value) * b.astype(wide.value)) >> shift).astype(kind.value), kind


def _high_of_64(a: Array, b: Array) -> Array:
    dtype = a.dtype
    exact = a.astype(object) * b.astype(object)
    mask = (1 << 64) - 1
    return np.array([(value >> 64) & mask for value in exact], np.uint64).view(dtype)


def multiply_add(decoding: Decoding) -> Run:
    """`mad` of integers, and of f32 as fma."""
    kind = decoding.type()
    if kind.kind == "f":
        return fma_of(decoding, kind)
    part = decoding.need("lo", "hi", "wide")
    decoding.finish(4)
    product, result = _product(kind, part)
    sources = [decoding.source(1, kind), decoding.source(2, kind), decoding.source(3, result)]
    return evaluate(decoding.sink(0, result), lambda a, b, c: product(a, b) + c, sources)


def divide(decoding: Decoding) -> Run:
    """`div`: of integers towards zero."""
    kind = decoding.type()
    if kind.kind == "f":
        return _arithmetic(decoding, kind, np.divide, 2)
    return _arithmetic(decoding, kind, lambda a, b: (a - np.fmod(a, b)) // b, 2)


def extreme(operation: Operation, propagating: Operation) -> Decoder:
    """Return the decoder of `min` or `max`; `.NaN` asks that NaN wins over numbers."""

    def decode(decoding: Decoding) -> Run:
        chosen = propagating if decoding.take("NaN") else operation
        kind = decoding.type()
        if decoding.take("relu"):
            inner = chosen
            chosen = lambda a, b: np.fmax(inner(a, b), kind.value(0))  # noqa: E731
        if len(decoding.operands) == 4:
            two = chosen
            return _arithmetic(decoding, kind, lambda a, b, c: two(two(a, b), c), 3)
        return _arithmetic(decoding, kind, chosen, 2)

    return decode


def reciprocal_root(value: Array) -> Array:
    """Return 1 / sqrt(value), rounded once from f64."""
    found: Array = (1 / np.sqrt(value.astype(np.float64))).astype(value.dtype)
    return found


def from_f64(function: Operation) -> Operation:
    """Compute in f64 and round once."""
    return lambda value: function(value.astype(np.float64)).astype(value.dtype)


def dot4(decoding: Decoding) -> Run:
    """`dp4a`: d = c + the dot product of two vectors of 4 bytes."""
    second = decoding.need("s32", "u32") if len(decoding.instruction.modifiers) > 1 else None
    first = decoding.need("s32", "u32")
    names = (second or first), first
    decoding.finish(4)
    sources = [decoding.source(1, TYPES["b32"]), decoding.source(2, TYPES["b32"])]
    sources.append(decoding.source(3, TYPES["s32"]))
    kinds = [np.int8 if name == "s32" else np.uint8 for name in names]

    def operation(a: Array, b: Array, c: Array) -> Array:
        parts = [
            np.ascontiguousarray(value).view(kind).reshape(-1, 4).astype(np.int32)
            for value, kind in zip((a, b), kinds, strict=True)
        ]
        dot: Array = (parts[0] * parts[1]).sum(axis=1, dtype=np.int32)
        return dot + c

    return evaluate(decoding.sink(0, TYPES["s32"]), operation, sources)


def copy_sign(decoding: Decoding) -> Run:
    """`copysign`: the second operand with the first one's sign."""
    kind = decoding.type()
    return _arithmetic(decoding, kind, lambda a, b: np.copysign(b, a), 2)


DECODERS: dict[str, Decoder] = {
    "add": simple(np.add),
    "sub": simple(np.subtract),
    "mul": multiply,
    "mad": multiply_add,
    "fma": fma,
    "div": divide,
    "rem": simple(np.fmod),
    "min": extreme(np.fmin, np.minimum),
    "max": extreme(np.fmax, np.maximum),
    "abs": simple(np.abs, 1),
    "neg": simple(np.negative, 1),
    "sqrt": simple(from_f64(np.sqrt), 1),
    "rsqrt": simple(reciprocal_root, 1),
    "rcp": simple(from_f64(lambda value: 1 / value), 1),
    "ex2": simple(from_f64(np.exp2), 1),
    "lg2": simple(from_f64(np.log2), 1),
    "sin": simple(from_f64(np.sin), 1),
    "cos": simple(from_f64(np.cos), 1),
    "tanh": simple(from_f64(np.tanh), 1),
    "dp4a": dot4,
    "copysign": copy_sign,
}
