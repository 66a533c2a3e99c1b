"""The body of ArgMax: vectors of the largest so far and of where they were, joined in the end."""

from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.arg_max import VECTORS, ArgMax
from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr, function, ramp, registers, splat
from tokc.targets.cpu.kernels.vector_math import LANES, keep, vectors

NOTHING = float("-inf")


def build(spec: ArgMax) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: _body(spec, arguments))


def _body(spec: ArgMax, arguments: Arguments) -> None:
    logits, tokens = arguments.buffer("logits", "float32"), arguments.buffer("tokens", "int32")
    largest, places = vectors(VECTORS), registers(VECTORS, LANES, "int32")
    value = T.alloc_buffer((1,), "float32", scope="global")
    place = T.alloc_buffer((1,), "int32", scope="global")
    step = VECTORS * LANES
    with arguments.share(arguments.rows) as row:
        start = keep(row * spec.x_stride)
        for i in range(VECTORS):
            largest[i], places[i] = splat(T.float32(NOTHING), LANES), splat(T.int32(0), LANES)
        with T.serial(0, spec.vocab // step) as block:
            for i in range(VECTORS):
                column = keep(block * step + i * LANES)
                found = keep(logits[ramp(start + column, LANES)])
                greater = found > largest[i]
                places[i] = T.Select(greater, splat(column, LANES), places[i])
                largest[i] = T.Select(greater, found, largest[i])
        T.buffer_store(value, T.float32(NOTHING), [0])
        T.buffer_store(place, T.int32(0), [0])
        _join(largest, places, value, place)
        with T.serial(spec.vocab // step * step, spec.vocab) as column:
            _take(value, place, logits[start + column], column)
        T.buffer_store(tokens, place[0], [row])


def _join(largest: Any, places: Any, value: Buffer, place: Buffer) -> None:
    """Leave the largest of all lanes; among equals the first column wins, whatever vector it was in."""
    lanes = T.alloc_buffer((VECTORS * LANES,), "float32", scope="global")
    columns = T.alloc_buffer((VECTORS * LANES,), "int32", scope="global")
    for i in range(VECTORS):
        T.buffer_store(lanes, largest[i], [ramp(i * LANES, LANES)])
        T.buffer_store(columns, places[i] + T.Ramp(T.int32(0), 1, LANES), [ramp(i * LANES, LANES)])
    with T.serial(0, VECTORS * LANES) as lane:
        _take(value, place, lanes[lane], columns[lane])


def _take(value: Buffer, place: Buffer, found: Expr, column: Expr) -> None:
    """Take a column if it is larger than the largest so far, or as large and further to the front."""
    found = keep(found)
    first = T.And(T.And(found == value[0], column < place[0]), found > T.float32(NOTHING))
    with T.If(T.Or(found > value[0], first)), T.Then():
        T.buffer_store(value, found, [0])
        T.buffer_store(place, column, [0])
