"""`cvt`: between types of numbers, rounded once, to nearest even or to an integer as the instruction says."""

from collections.abc import Callable

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.instructions.arithmetic import evaluate, flush
from tests.ptx.types import TYPES, Array, Type

TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
LARGEST = {"f16": 65504.0, "f16x2": 65504.0, "e4m3x2": 448.0, "e5m2x2": 57344.0, "e4m3x4": 448.0}


def convert(decoding: Decoding) -> Run:
    """Convert one number, or two or four into a packed register."""
    origin = decoding.type()
    target = decoding.type()
    if target.packed > 1:
        return _to_packed(decoding, target, origin)
    flushes = decoding.take("ftz") is not None
    saturates = decoding.take("sat", "satfinite")
    relu = decoding.take("relu") is not None
    rounding = decoding.take("rn", *TO_INTEGER)
    decoding.finish(2)
    function = _function(decoding, target, origin, rounding)

    def operation(value: Array) -> Array:
        if flushes and origin.name == "f32":
            value = flush(value)
        if relu:
            value = np.fmax(value, value.dtype.type(0))
        if saturates is not None:
            value = saturated(value, target, saturates)
        return function(value)

    return evaluate(decoding.sink(0, target), operation, [decoding.source(1, origin)])


def saturated(value: Array, target: Type, how: str) -> Array:
    """Hold a number within what the target takes; `.sat` holds a float within [0, 1]."""
    if target.kind in {"f", "bf"} or target.packed > 1:
        largest = 1.0 if how == "sat" else LARGEST.get(target.name, np.inf)
        limits = np.array([0.0 if how == "sat" else -largest, largest], value.dtype)
        held: Array = np.minimum(np.maximum(value, limits[0]), limits[1])
        return np.where(np.isnan(held), limits[0], held) if how == "sat" else held
    if value.dtype.kind == "f":
        return value
    low, high = int(np.iinfo(target.value).min), int(np.iinfo(target.value).max)
    # In Python's integers, for no type of numpy holds both s64 and u64.
    return np.array([min(max(each, low), high) for each in value.tolist()], target.value)


def _function(
    decoding: Decoding, target: Type, origin: Type, rounding: str | None
) -> Callable[[Array], Array]:
    from_float = origin.kind in {"f", "bf"}
    to_float = target.kind in {"f", "bf"}
    if rounding in TO_INTEGER and to_float:
        return lambda value: TO_INTEGER[rounding](value).astype(target.value)
    if from_float and not to_float:
        if rounding not in TO_INTEGER:
            raise decoding.refuse("a rounding to an integer is expected")
        return lambda value: float_to_integer(TO_INTEGER[rounding](value), target)
    return lambda value: value.astype(target.value)


def float_to_integer(value: Array, target: Type) -> Array:
    """Convert a whole number, held within the integer's range; NaN gives 0."""
    limits = np.iinfo(target.value)
    wide = np.where(np.isnan(value), 0, value.astype(np.float64))
    inside = np.clip(wide, float(limits.min), float(limits.max))
    # The largest 64-bit integers are no f64; what rounds up to beyond them is put back.
    found = np.where(inside >= float(limits.max), 0, inside).astype(target.value)
    return np.where(inside >= float(limits.max), target.value(limits.max), found)


def _to_packed(decoding: Decoding, target: Type, origin: Type) -> Run:
    decoding.need("rn")
    how = decoding.take("satfinite")
    relu = decoding.take("relu") is not None
    if origin.packed > 1:
        decoding.finish(2)
        return evaluate(
            decoding.sink(0, target), lambda value: value.astype(target.value), [decoding.source(1, origin)]
        )
    decoding.finish(target.packed + 1)
    if origin.name != "f32":
        raise decoding.refuse(f"packing {origin.name} is not executed")

    def operation(*values: Array) -> Array:
        # The first operand goes into the highest bits.
        joined = np.stack(np.broadcast_arrays(*reversed(values)), axis=1)
        if relu:
            joined = np.fmax(joined, np.float32(0))
        if how is not None:
            joined = saturated(joined, target, how)
        if target.kind == "bf":
            return joined
        return joined.astype(target.value)

    sources = [decoding.source(index + 1, TYPES["f32"]) for index in range(target.packed)]
    return evaluate(decoding.sink(0, target), operation, sources)


DECODERS: dict[str, Decoder] = {"cvt": convert}
