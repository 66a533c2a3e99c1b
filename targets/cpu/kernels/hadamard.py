"""Turn a head by an orthonormal Hadamard matrix, held as vectors of 16 f32.

The fast transform: in stages of stride 1, 2, 4, .. each pair (x[i], x[i + stride]) becomes its sum and its
difference; then all are multiplied by n ** -0.5. A head whose width is no power of two is turned in equal
parts of n elements that are. Source: Ashkboos et al. 2024, arXiv:2404.00456, on keys and values.
"""

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.tir import Expr, Registers
from tokc.targets.cpu.kernels.vector_math import LANES, constant, fma, keep, multiply


def turn(head: Registers, dim: int) -> None:
    """Replace a head of `dim` elements, a multiple of 16."""
    part = dim & -dim
    assert part >= LANES, f"heads of {dim} elements have no parts of whole vectors"
    for stride in (1 << i for i in range(part.bit_length() - 1)):
        if stride < LANES:
            for i in range(dim // LANES):
                head[i] = _within(keep(head[i]), stride)
            continue
        step = stride // LANES
        for i in range(dim // LANES):
            if i // step % 2 == 0:
                low, high = keep(head[i]), keep(head[i + step])
                head[i], head[i + step] = low + high, low - high
    norm = constant(part**-0.5)
    for i in range(dim // LANES):
        head[i] = multiply(head[i], norm)


def _within(vector: Expr, stride: int) -> Expr:
    """Return the sums and differences of lanes `stride` apart; a product with 1 or -1 rounds nothing."""
    other = T.Shuffle([vector], [lane ^ stride for lane in range(LANES)])
    signs = T.Shuffle(
        [constant(1.0), constant(-1.0)], [LANES * (lane // stride % 2) for lane in range(LANES)]
    )
    return fma(vector, keep(signs), keep(other))
