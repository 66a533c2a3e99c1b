"""Linear and embedding kernels with inputs and the answers that numpy gives in f64."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.passes.quantization.narrow_scales import narrowed
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.embedding import Embedding, LinearEmbedding, QuantEmbedding
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.packing import pack_linear, pack_quant

Array = npt.NDArray[Any]
GROUP = 32
GRIDS = (
    *((4, True, 32), (4, False, 64), (8, True, 32)),
    *((3, True, 64), (3, False, 32), (2, True, 128)),
)
NARROW_SCALED = ((4, True, 32), (8, True, 32), (3, True, 64))
N, K, STRIDE = 100, 96, 128


@dataclass(frozen=True)
class Case:
    """A kernel, its per-row inputs, its fixed inputs, and the expected rows of its last argument."""

    kernel: Any
    fixed: dict[str, Array]
    rows: dict[str, Array]
    expected: Array

    @property
    def width(self) -> int:
        """Return the row stride of the result."""
        return int(getattr(self.kernel, "y_stride", K))


def quantized(x: Array) -> tuple[Array, Array, Array]:
    """Quantize rows to int8 in groups of 32, as the op's row says."""
    groups = x.reshape(len(x), -1, GROUP)
    scale = (np.abs(groups).max(-1) / np.float32(127)).astype(np.float32)
    q = np.rint(groups / np.where(scale == 0, 1, scale)[..., None]).astype(np.int8)
    return q.reshape(x.shape), scale, q.astype(np.int32).sum(-1).astype(np.int32)


def cases(isa: Isa, rows: int = 37) -> Iterator[Case]:
    """Yield every kernel family in every form, at sizes that leave tails everywhere."""
    rng = np.random.default_rng(11)
    for bits, symmetric, block in GRIDS:
        yield from _quant_cases(isa, rows, (bits, symmetric, block, 16), rng)
    for bits, symmetric, block in NARROW_SCALED:
        yield from _quant_cases(isa, rows, (bits, symmetric, block, 8), rng)
    w = rng.standard_normal((N, K)).astype(np.float32)
    x = rng.standard_normal((rows, K)).astype(np.float32)
    bias = np.zeros(STRIDE, np.float32)
    bias[:N] = rng.standard_normal(N)
    ids = rng.integers(0, N, rows).astype(np.int32)
    kernel = Linear(isa, N, K, bias=True, x_stride=K, y_stride=STRIDE)
    packed = pack_linear(w, kernel)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + bias[:N]
    yield Case(kernel, {"w": packed, "bias": bias}, {"x": x}, expected)
    yield Case(LinearEmbedding(kernel), {"w": packed}, {"ids": ids}, w[ids])
    yield Case(Embedding(isa, K), {"w": w}, {"ids": ids}, w[ids])


def _quant_cases(
    isa: Isa, rows: int, grid: tuple[int, bool, int, int], rng: np.random.Generator
) -> Iterator[Case]:
    bits, symmetric, block, scale_bits = grid
    low, high = (0, 1 << bits) if bits <= 4 else (-127, 128)
    q = rng.integers(low, high, (N, K)).astype(np.uint8 if bits <= 4 else np.int8)
    blocks = -(-K // block)
    scale = (rng.random((N, blocks)) * 0.01 + 0.001).astype(np.float16)
    if scale_bits == 8:
        scale = narrowed(scale)
    offset = None if symmetric else (rng.standard_normal((N, blocks)) * 0.01).astype(np.float16)
    bias = np.zeros(STRIDE, np.float32)
    bias[:N] = rng.standard_normal(N)
    with_bias = block != GROUP
    kernel = QuantLinear(isa, N, K, bits, symmetric, with_bias, STRIDE, block, scale_bits)
    w = (q.astype(np.float64) - (1 << bits >> 1 if bits <= 4 and symmetric else 0)) * spread(scale, block)
    if offset is not None:
        w = w + spread(offset, block)
    xq, xs, xsum = quantized(rng.standard_normal((rows, K)).astype(np.float32))
    expected = (xq * np.repeat(xs, GROUP, 1).astype(np.float64)) @ w.T + (bias[:N] if with_bias else 0)
    packed = pack_quant(q, scale, offset, kernel)
    fixed = {"w": packed, **({"bias": bias} if with_bias else {})}
    yield Case(kernel, fixed, {"xq": xq, "xs": xs, "xsum": xsum}, expected)
    ids = rng.integers(0, N, rows).astype(np.int32)
    yield Case(QuantEmbedding(kernel), {"w": packed}, {"ids": ids}, w[ids])


def spread(values: Array, block: int) -> Array:
    """Repeat a block's value over its columns."""
    return np.repeat(values.astype(np.float64), block, 1)[:, :K]
