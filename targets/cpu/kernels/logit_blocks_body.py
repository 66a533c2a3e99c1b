"""The body of LogitBlocks: four vectors a block."""

from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.logit_blocks import WIDTH, LogitBlocks
from tokc.targets.cpu.kernels.tir import Arguments, Expr, function, splat
from tokc.targets.cpu.kernels.vector_math import LANES, exponential, keep, largest, load, multiply, total


def build(spec: LogitBlocks) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: _body(spec, arguments))


def _body(spec: LogitBlocks, arguments: Arguments) -> None:
    logits, tokens = arguments.buffer("logits", "float32"), arguments.buffer("tokens", "int32")
    scales, blocks = arguments.buffer("scales", "float32"), spec.vocab // WIDTH
    maxima, sums = arguments.buffer("maxima", "float32"), arguments.buffer("sums", "float32")
    with arguments.share(arguments.rows) as row:
        scale = keep(scales[row])
        with T.If(scale > T.float32(0)), T.Then():
            start = keep(row * spec.x_stride)
            top = splat(keep(logits[start + tokens[row]]), LANES)
            with T.serial(0, blocks) as block:
                column = keep(start + block * WIDTH)
                found = [load(logits, column + i * LANES) for i in range(WIDTH // LANES)]
                weights = [exponential(multiply(keep(x - top), splat(scale, LANES))) for x in found]
                T.buffer_store(maxima, largest(_pairwise(found, T.max)), [row * blocks + block])
                T.buffer_store(sums, total(_pairwise(weights, lambda a, b: a + b)), [row * blocks + block])


def _pairwise(values: list[Expr], combine: Any) -> Expr:
    """Combine neighbours until one value is left."""
    while len(values) > 1:
        values = [keep(combine(a, b)) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]
