"""Rows of ops that read weights, against their definitions in f64."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.targets.tpu.interpreted import interpret_kernels
from tokc.runtime.executors.xla import four_bits
from tokc.targets.tpu import products, rows
from tokc.targets.tpu.step import Bucket, Cache, Node, Step

Array = Any
GRIDS = [(4, True, False), (4, False, True), (8, True, False)]
CACHE = Cache(1, 16, 1, 8, "float32", 1, (None,) * 4)


def run(compute: str = "float32") -> rows.Run:
    step = Step("cpu", compute, "xla", "xla", 1, 8, 8, CACHE, (), (), (Bucket(1, 1),), "y")
    return rows.Run(step, None, None, None, [])


def packed(codes: Array) -> Array:
    """Return four-bit codes as the file has them."""
    nibbles, half = codes.astype(np.uint8) & 15, codes.shape[1] // 2
    return nibbles[:, :half] | nibbles[:, half:] << 4


def grid(rng: np.random.Generator, shape: tuple[int, int], block: int, *, bits: int, signed: bool) -> Any:
    """Return codes, scales and offsets [n, ceil(k / block)] of a weight, and the weight in f64."""
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    codes = rng.integers(low, high, shape)
    scale, offset = (rng.normal(size=(shape[0], -(-shape[1] // block))).astype(np.float16) for _ in range(2))
    wide = [np.repeat(each.astype(np.float64), block, 1)[:, : shape[1]] for each in (scale, offset)]
    return codes, scale, offset, codes * wide[0], wide[1]


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("bits", "signed", "with_offset"), GRIDS)
@pytest.mark.parametrize("width", [96, 80])  # the last group of 80 is half a one
def test_a_product_over_a_grid(
    width: int, bits: int, *, signed: bool, with_offset: bool, transposed: bool
) -> None:
    rng = np.random.default_rng(0)
    codes, scale, offset, weight, shift = grid(rng, (24, width), 32, bits=bits, signed=signed)
    weight = weight + (shift if with_offset else 0)
    x, bias = rng.normal(size=(5, width)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    turn = (lambda each: each.T) if transposed else (lambda each: each)
    stored = packed(turn(codes)) if bits == 4 else turn(codes).astype(np.int8)
    node = Node("QuantLinear", (), (), {"block_size": 32, "signed": signed, "transposed": transposed})
    found = rows.quant_linear(
        run(),
        node,
        jnp.asarray(x),
        jnp.asarray(stored),
        turn(scale),
        turn(offset) if with_offset else None,
        bias,
    )
    np.testing.assert_allclose(found, x.astype(np.float64) @ weight.T + bias, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("signed", [True, False])
def test_rows_of_a_packed_table(signed: bool) -> None:
    rng = np.random.default_rng(1)
    codes, scale, _, weight, _ = grid(rng, (20, 64), 32, bits=4, signed=signed)
    node = Node("QuantEmbedding", (), (), {"block_size": 32, "signed": signed, "transposed": False})
    found = rows.quant_embedding(
        run(), node, jnp.array([3, 19, 3]), jnp.asarray(packed(codes)), jnp.asarray(scale)
    )
    np.testing.assert_allclose(found, weight[[3, 19, 3]], rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_a_tpu_gets_the_codes_that_a_processor_unpacks(signed: bool) -> None:
    rng = np.random.default_rng(2)
    codes, *_ = grid(rng, (6, 10), 32, bits=4, signed=signed)
    for_tpu = four_bits(packed(codes), jnp.dtype("int4" if signed else "uint4"))
    np.testing.assert_array_equal(for_tpu.astype(np.int8), codes)
    np.testing.assert_array_equal(rows.codes(jnp.asarray(packed(codes)), signed=signed), codes)


@pytest.mark.parametrize(("bits", "signed", "with_offset"), GRIDS)
@pytest.mark.parametrize("shape", [(40, 96), (1100, 512)])
def test_the_kernel_of_a_product_interpreted(
    shape: tuple[int, int], bits: int, *, signed: bool, with_offset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns in one block and in three, of which the last is short; rows in one block and in two."""
    interpret_kernels(monkeypatch)
    monkeypatch.setattr(products, "MOST_DEPTH", 256)
    monkeypatch.setattr(products, "DEPTH_AT_ONCE", 256)
    rng = np.random.default_rng(4)
    codes, scale, offset, weight, shift = grid(rng, shape, 32, bits=bits, signed=signed)
    weight = weight + (shift if with_offset else 0)
    x = rng.normal(size=(3, shape[1])).astype(ml_dtypes.bfloat16)
    kind = "int8" if bits == 8 else "int4" if signed else "uint4"
    tables = [each.T.astype(np.float32) for each in ((scale, offset) if with_offset else (scale,))]
    found = products.grid_product(jnp.asarray(x), jnp.asarray(codes.T).astype(kind), *[*tables, None][:2], 32)
    near = weight.astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_allclose(found, x.astype(np.float64) @ near.T, rtol=1e-4, atol=1e-2)


def test_what_the_kernel_cannot_cut_into_blocks_is_left_to_xla() -> None:
    assert products.depth_of(576, 32) == 576
    assert products.depth_of(8192, 32) == 2048
    assert products.depth_of(80, 32) is None, "the last group is half a one"
    assert products.depth_of(11008, 32) == 256
    assert products.depth_of(4100 * 32, 32) is None


def test_products_in_bfloat16_are_summed_in_float32() -> None:
    x, ones = np.full((1, 4096), 1.0, np.float32), np.full((2, 4096), 1.0, np.float32)
    found = rows.linear(run("bfloat16"), Node("Linear", (), (), {}), jnp.asarray(x), jnp.asarray(ones))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, 4096)  # bfloat16 stops counting at 256


def test_norms_and_activations() -> None:
    rng = np.random.default_rng(3)
    x, r, w = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 16), (4, 16), (16,)))
    node = Node("AddRmsNorm", (), (), {"epsilon": 1e-5})
    total, normed = rows.add_rms_norm(run(), node, jnp.asarray(x), jnp.asarray(r), jnp.asarray(w))
    both = x.astype(np.float64) + r
    np.testing.assert_allclose(total, both, rtol=1e-6)
    expected = both / np.sqrt((both**2).mean(-1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(normed, expected, rtol=1e-5)
    gate, up = both[:, :8], both[:, 8:]
    silu = rows.gated_activation(
        run(), Node("GatedActivation", (), (), {"activation": "silu"}), jnp.asarray(total)
    )
    np.testing.assert_allclose(silu, gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-6)
    gelu = rows.gated_activation(
        run(), Node("GatedActivation", (), (), {"activation": "gelu"}), jnp.asarray(total)
    )
    tanh = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_allclose(gelu, tanh * up, rtol=1e-4, atol=1e-6)


def test_every_supported_op_has_a_row() -> None:
    from tokc.targets.tpu.describe import SUPPORTED

    assert set(rows.ROWS) == SUPPORTED
