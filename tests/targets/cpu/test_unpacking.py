"""What was packed for any instruction set is read back to the bit, by the name of its kernel."""

import numpy as np
import pytest

from tests.targets.cpu.linear_cases import GRIDS, NARROW_SCALED
from tokc.passes.quantization.narrow_scales import narrowed
from tokc.targets.cpu.isa import ISAS
from tokc.targets.cpu.kernels.embedding import LinearEmbedding, QuantEmbedding
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.packing import pack_linear, pack_quant
from tokc.targets.cpu.unpacking import kernel_of, unpack_linear, unpack_quant

RNG = np.random.default_rng(5)
N, K = 100, 160


@pytest.mark.parametrize(
    "grid", [*((*grid, 16) for grid in GRIDS), *((*grid, 8) for grid in NARROW_SCALED)], ids=str
)
@pytest.mark.parametrize("name", ISAS)
def test_codes_scales_and_offsets_come_back(name: str, grid: tuple[int, bool, int, int]) -> None:
    bits, symmetric, block, scale_bits = grid
    low, high = (0, 1 << bits) if bits <= 4 else (-127, 128)
    codes = RNG.integers(low, high, (N, K)).astype(np.uint8 if bits <= 4 else np.int8)
    shape = (N, -(-K // block))
    scale = RNG.standard_normal(shape).astype(np.float16)
    if scale_bits == 8:
        scale = narrowed(scale)
    offset = None if symmetric else RNG.standard_normal(shape).astype(np.float16)
    kernel = QuantLinear(ISAS[name], N, K, bits, symmetric, block == 64, 128, block, scale_bits)
    packed = pack_quant(codes, scale, offset, kernel)
    assert kernel_of(kernel.symbol, ISAS[name]) == kernel
    assert kernel_of(QuantEmbedding(kernel).symbol, ISAS[name]) == kernel
    found = unpack_quant(packed, kernel)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scale, scale)
    assert (found.offset is None) is symmetric
    if offset is not None:
        np.testing.assert_array_equal(found.offset, offset)
    assert found.zero_point == (1 << bits - 1 if symmetric and bits <= 4 else 0)


@pytest.mark.parametrize("name", ISAS)
def test_plain_weights_come_back(name: str) -> None:
    w = RNG.standard_normal((N, K)).astype(np.float32)
    kernel = Linear(ISAS[name], N, K, bias=True, x_stride=K, y_stride=128)
    for symbol in (kernel.symbol, LinearEmbedding(kernel).symbol):
        found = kernel_of(symbol, ISAS[name])
        assert isinstance(found, Linear)
        np.testing.assert_array_equal(unpack_linear(pack_linear(w, kernel).view(np.uint8), found), w)


def test_kernels_without_packed_weights_are_none() -> None:
    assert kernel_of("add_rms_norm_576_576_3727c5ac_q", ISAS["x86-64-v3"]) is None
