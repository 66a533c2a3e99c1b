"""The bodies of the kernels around the experts of a mixture-of-experts layer, as moe.py says."""

import math
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.moe import MoeCombine, MoeGather, MoeGroup, MoeRoute
from tokc.targets.cpu.kernels.quantize import GROUP, QUANTIZED_ARGS
from tokc.targets.cpu.kernels.row_bodies import HALVES, groups
from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr, function, ramp, splat, zeros
from tokc.targets.cpu.kernels.vector_math import (
    LANES,
    constant,
    exponential,
    fma,
    keep,
    load,
    multiply,
    sigmoid,
    store,
    total,
)

LEAST = -math.inf


def route(spec: MoeRoute) -> Any:
    """Return the PrimFunc of MoeRoute."""

    def body(arguments: Arguments) -> None:
        scores = arguments.buffer("scores", "float32")
        experts, weights = arguments.buffer("experts", "int32"), arguments.buffer("weights", "float32")
        with arguments.share(arguments.rows) as row:
            start, slots = T.Bind(row * spec.x_stride), T.Bind(row * spec.top_k)
            _choose(spec, scores, start, experts, slots)
            peak = keep(scores[start + experts[slots]])
            parts = [
                keep(_scalar(exponential(splat(scores[start + experts[slots + j]] - peak, LANES))))
                for j in range(spec.top_k)
            ]
            whole = _sum(parts) if spec.normalize else _all(spec, scores, start, peak)
            first = T.Bind(row * spec.weights)
            for j, part in enumerate(parts):
                T.buffer_store(weights, part / whole, [first + j])
            if spec.shared:
                gate = keep(_scalar(sigmoid(splat(scores[start + spec.experts], LANES))))
                T.buffer_store(weights, gate, [first + spec.top_k])

    return function(spec.symbol, spec.args, body)


def _choose(spec: MoeRoute, scores: Buffer, start: Expr, experts: Buffer, slots: Expr) -> None:
    """Write the experts of the largest scores in descending order; of equal scores the lower index first.

    Each is the best of those after the one before. Where none is (NaN), it is the slot's own number.
    """
    bound, after = _cell("float32"), _cell("int32")
    best, at = _cell("float32"), _cell("int32")
    T.buffer_store(bound, T.float32(math.inf), [0])
    T.buffer_store(after, T.int32(-1), [0])
    with T.serial(0, spec.top_k) as slot:
        T.buffer_store(best, T.float32(LEAST), [0])
        T.buffer_store(at, slot, [0])
        with T.serial(0, spec.experts) as expert:
            score = keep(scores[start + expert])
            later = T.Or(score < bound[0], T.And(score == bound[0], expert > after[0]))
            with T.If(T.And(later, score > best[0])), T.Then():
                T.buffer_store(best, score, [0])
                T.buffer_store(at, expert, [0])
        T.buffer_store(experts, at[0], [slots + slot])
        T.buffer_store(bound, best[0], [0])
        T.buffer_store(after, at[0], [0])


def _all(spec: MoeRoute, scores: Buffer, start: Expr, peak: Expr) -> Expr:
    """Return the sum of exp(score - peak) over all experts, whose row ends at a multiple of 32."""
    sums = T.alloc_buffer((LANES,), "float32", scope="global")
    T.buffer_store(sums, zeros(LANES), [ramp(0, LANES)])
    with T.serial(0, -(-spec.experts // LANES)) as part:
        index = ramp(part * LANES, LANES)
        here = load(scores, start + part * LANES)
        value = exponential(here - splat(peak, LANES))
        value = T.Select(index < splat(T.int32(spec.experts), LANES), value, constant(0.0))
        T.buffer_store(sums, sums[ramp(0, LANES)] + value, [ramp(0, LANES)])
    return total(keep(sums[ramp(0, LANES)]))


def group(spec: MoeGroup) -> Any:
    """Return the PrimFunc of MoeGroup, a counting sort."""

    def body(arguments: Arguments) -> None:
        experts, starts, tokens, places = (arguments.buffer(name, "int32") for name in spec.args)
        slots = T.Bind(arguments.rows * spec.top_k)
        cursors = spec.experts + 1
        with T.If(arguments.tid == 0), T.Then():
            with T.serial(0, spec.experts + 1) as at:
                T.buffer_store(starts, T.int32(0), [at])
            with T.serial(0, slots) as slot:
                after = keep(experts[slot] + 1)
                T.buffer_store(starts, starts[after] + 1, [after])
            with T.serial(0, spec.experts) as expert:
                T.buffer_store(starts, starts[expert], [cursors + expert])
                T.buffer_store(starts, starts[expert + 1] + starts[expert], [expert + 1])
            with T.serial(0, slots) as slot:
                cursor = keep(experts[slot] + cursors)
                place = keep(starts[cursor])
                T.buffer_store(starts, place + 1, [cursor])
                T.buffer_store(tokens, slot // spec.top_k, [place])
                T.buffer_store(places, place, [slot])

    return function(spec.symbol, spec.args, body)


def gather(spec: MoeGather) -> Any:
    """Return the PrimFunc of MoeGather."""

    def body(arguments: Arguments) -> None:
        tokens = arguments.buffer("tokens", "int32")
        arguments.rows = T.Bind(arguments.rows * spec.top_k)
        if not spec.quantized:
            x, y = arguments.buffer("x", "float32"), arguments.buffer("y", "float32")
            with groups(arguments, spec.width) as (place, column):
                source = T.Bind(tokens[place] * spec.x_stride + column)
                for offset in HALVES:
                    store(y, place * spec.width + column + offset, load(x, source + offset))
            return
        pairs = [
            (arguments.buffer(f"from_{name}", dtype), arguments.buffer(name, dtype))
            for name, dtype in zip(QUANTIZED_ARGS, ("int8", "float32", "int32"), strict=True)
        ]
        with groups(arguments, spec.width) as (place, column):
            source, target = T.Bind(tokens[place] * spec.width + column), T.Bind(place * spec.width + column)
            (quants, to_quants), *rest = pairs
            T.buffer_store(to_quants, quants[ramp(source, GROUP)], [ramp(target, GROUP)])
            for values, to_values in rest:
                T.buffer_store(to_values, values[source // GROUP], [target // GROUP])

    return function(spec.symbol, spec.args, body)


def combine(spec: MoeCombine) -> Any:
    """Return the PrimFunc of MoeCombine."""

    def body(arguments: Arguments) -> None:
        places, weights = arguments.buffer("places", "int32"), arguments.buffer("weights", "float32")
        y, out = arguments.buffer("y", "float32"), arguments.buffer("out", "float32")
        shared = arguments.buffer("shared", "float32") if spec.shared_stride else None
        count = spec.top_k + (shared is not None)
        with groups(arguments, spec.width) as (row, column):
            sums: list[Expr] = []
            for j in range(count):
                factor = keep(splat(weights[row * count + j], LANES))
                source, start = y, row * spec.shared_stride + column
                if j < spec.top_k:
                    start = T.Bind(places[row * spec.top_k + j] * spec.y_stride + column)
                elif shared is not None:
                    source = shared
                values = [load(source, start + offset) for offset in HALVES]
                sums = [
                    multiply(factor, value) if not sums else fma(factor, value, sums[half])
                    for half, value in enumerate(values)
                ]
            for offset, summed in zip(HALVES, sums, strict=True):
                store(out, row * spec.width + column + offset, summed)

    return function(spec.symbol, spec.args, body)


def _cell(dtype: str) -> Buffer:
    """Return a scalar that changes."""
    return T.alloc_buffer((1,), dtype, scope="global")


def _scalar(vector: Expr) -> Expr:
    """Return the first lane."""
    return T.Shuffle([vector], [0])


def _sum(values: list[Expr]) -> Expr:
    """Return the sum, from left to right."""
    whole = values[0]
    for value in values[1:]:
        whole = keep(whole + value)
    return whole
