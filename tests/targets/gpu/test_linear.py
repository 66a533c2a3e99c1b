"""Matrix products with weights on a grid, against their formula in f64; no batch changes their bits."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import DTYPES, info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.device import ARCHITECTURES
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.packing import pack_codes, pack_dense, pack_groups, unpack
from tokc.targets.gpu.tiles import Tile

Array = npt.NDArray[np.generic]
UNTOUCHED = 7.0
GRIDS = [(16, True, 32), (8, True, 32), (4, True, 32), (4, False, 32), (4, True, 128)]


def linear(n: int, k: int, bits: int, *, symmetric: bool = True, **given: object) -> Linear:
    fields: dict[str, object] = {"bias": False, "x_stride": k, "y_dtype": "f32", **given}
    return Linear(n, k, bits, symmetric, **fields)  # type: ignore[arg-type]


def weight(kernel: Linear, seed: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shape, groups = (kernel.n, kernel.k), (kernel.n, kernel.k // kernel.group)
    if kernel.bits == 16:
        return {"weight": pack_dense(rng.normal(0, 1, shape), kernel)}
    low, high = (0, 16) if kernel.bits == 4 else (-128, 128)
    parts = {"weight": pack_codes(rng.integers(low, high, shape), kernel)}
    parts["scale"] = pack_groups(rng.uniform(0.5, 1.5, groups) / high, kernel)
    if not kernel.symmetric:
        parts["offset"] = pack_groups(rng.normal(-0.5, 0.1, groups), kernel)
    return parts


def activations(kernel: Linear, rows: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(5).normal(0, 1, (rows, kernel.x_stride)).astype(np.float16)


def rounding_between_tiles(kernel: Linear, rows: int) -> tuple[dict[str, Array], npt.NDArray[np.float16]]:
    """Return a weight and activations whose products add up exactly in a tile, and not from tile to tile.

    The interpreter leaves the order within a tile to numpy, where it depends on shapes. So only the order of
    the tiles shows in the result, and it does: their magnitudes are far apart.
    """
    rng = np.random.default_rng(9)
    shape, size = (kernel.n, kernel.k), kernel.shape.block_k
    tiles = -(-kernel.k // size)
    magnitude = np.repeat(2.0 ** rng.permutation(np.linspace(-12, 6, tiles).astype(int)), size)[: kernel.k]
    x = rng.integers(-8, 9, (rows, kernel.x_stride)).astype(np.float16)
    if kernel.bits == 16:
        return {"weight": pack_dense(rng.integers(-7, 8, shape) * magnitude, kernel)}, x
    codes = rng.integers(*((0, 16) if kernel.bits == 4 else (-128, 128)), shape)
    scale = np.broadcast_to(magnitude[:: kernel.group], (kernel.n, kernel.k // kernel.group))
    parts = {"weight": pack_codes(codes, kernel), "scale": pack_groups(scale, kernel)}
    if not kernel.symmetric:
        parts["offset"] = pack_groups(-scale * rng.integers(0, 16, scale.shape), kernel)
    return parts, x


def run(kernel: Linear, parts: dict[str, Array], x: Array, count: int, bias: Array | None = None) -> Array:
    """Launch over as many rows as y has, of which `count` are the step's."""
    y = np.full((len(x), kernel.n), UNTOUCHED, DTYPES[kernel.y_dtype])
    arrays: dict[str, Array] = {**parts, "x": x, "info": info(**{kernel.rows: count}), "y": y}
    if bias is not None:
        arrays["bias"] = bias
    for name, dtype, shape in kernel.scratch:
        arrays[name] = np.zeros(shape, DTYPES[dtype])
    interpret(kernel, arrays, {kernel.rows: len(x)})
    assert not arrays.get("counters", np.zeros(1)).any(), "the counters are not zero for the next launch"
    return y


@pytest.mark.parametrize(("bits", "symmetric", "group"), GRIDS)
@pytest.mark.parametrize(("n", "k", "y_dtype"), [(96, 128, "f32"), (40, 384, "f16")])
def test_it_computes_the_product_and_leaves_rows_past_the_count(
    bits: int, symmetric: bool, group: int, n: int, k: int, y_dtype: str
) -> None:
    kernel = linear(n, k, bits, symmetric=symmetric, group=group, y_dtype=y_dtype, bias=True, x_stride=k + 8)
    parts, x = weight(kernel), activations(kernel, 19)
    bias = np.random.default_rng(6).normal(0, 1, n).astype(np.float32)
    x[17:] = np.nan
    y = run(kernel, parts, x, 17, bias)
    w = unpack(parts, kernel)
    expected = x[:17, :k].astype(np.float64) @ w.T + bias
    # A weight is rounded to f16 (twice where an offset is added), errors add up as roots.
    bound = 2**-11 * np.sqrt((x[:17, :k].astype(np.float64) ** 2) @ (np.abs(w) + 1).T ** 2) * 3
    if y_dtype == "f16":
        bound += 2**-10 * np.abs(expected)
    assert (np.abs(y[:17] - expected) <= bound).all()
    assert (y[17:] == UNTOUCHED).all()


def test_codes_and_scales_that_f16_holds_give_exact_sums() -> None:
    """Powers of two as scales and small integers leave nothing to round, so any misplaced column shows."""
    kernel = linear(48, 160, 4)
    rng = np.random.default_rng(8)
    parts = {
        "weight": pack_codes(rng.integers(0, 16, (48, 160)), kernel),
        "scale": pack_groups(2.0 ** rng.integers(-3, 3, (48, 5)), kernel),
    }
    x = rng.integers(-4, 5, (5, 160)).astype(np.float16)
    assert (run(kernel, parts, x, 5) == x.astype(np.float64) @ unpack(parts, kernel).T).all()


@pytest.mark.parametrize(("bits", "symmetric", "group"), GRIDS)
@pytest.mark.parametrize("splits", [1, 3])
def test_a_row_has_the_same_bits_in_narrow_and_wide_steps_at_every_row_count(
    bits: int, symmetric: bool, group: int, splits: int
) -> None:
    tile = Tile(32, max(64, group), 4, 3, splits)
    narrow = linear(56, 384, bits, symmetric=symmetric, group=group, tile=tile)
    wide = replace(narrow, tile_rows=64)
    assert narrow.order == wide.order
    parts, x = rounding_between_tiles(narrow, 70)
    whole = run(wide, parts, x, 70)
    assert (whole != x.astype(np.float64) @ unpack(parts, narrow).T).mean() > 0.1, "no order would show"
    assert (run(narrow, parts, x[:1].copy(), 1) == whole[:1]).all()
    assert (run(narrow, parts, x[60:].copy(), 9)[:9] == whole[60:69]).all()
    assert (run(narrow, parts, x[:33].copy(), 33) == whole[:33]).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(16, True), (4, False)])
def test_ranges_of_columns_that_are_dealt_to_programs_give_the_same_bits(bits: int, symmetric: bool) -> None:
    tile = Tile(32, 64, 4, 3, splits=4)
    whole = linear(40, 608, bits, symmetric=symmetric, tile=tile)
    parts, x = rounding_between_tiles(whole, 16)
    shared = replace(whole, shared_out=True)
    assert (run(shared, parts, x, 11)[:11] == run(whole, parts, x, 11)[:11]).all()
    assert (run(shared, parts, x, 11)[11:] == UNTOUCHED).all()


def test_logit_rows_are_bounded_by_their_own_count() -> None:
    kernel = linear(32, 64, 16, rows="rows")
    parts, x = weight(kernel), activations(kernel, 3)
    y = run(kernel, parts, x, 2)
    assert (y[:2] != UNTOUCHED).all()
    assert (y[2] == UNTOUCHED).all()


def test_what_f16_cannot_hold_is_held_at_its_limit() -> None:
    kernel = linear(16, 32, 16, y_dtype="f16")
    w = np.full((16, 32), 300.0)
    w[1] = -300
    y = run(kernel, {"weight": pack_dense(w, kernel)}, np.full((1, 32), 300, np.float16), 1)
    assert y[0, 0] == 65504
    assert y[0, 1] == -65504


@pytest.mark.parametrize("architecture", ["", *ARCHITECTURES])
@pytest.mark.parametrize(("n", "k"), [(576, 576), (576, 1536), (49152, 576), (4096, 14336), (100, 96)])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_tiles_fit_the_weight_and_agree_in_order_between_narrow_and_wide(
    n: int, k: int, bits: int, architecture: str
) -> None:
    narrow = linear(n, k, bits, architecture=architecture)
    wide = narrow.variant(wide=True, bias=False, x_stride=k, y_dtype="f16")
    assert wide.tile_rows > narrow.tile_rows
    assert narrow.order == wide.order
    assert narrow.shape.block_k % narrow.unit == 0


def test_what_no_kernel_computes_is_refused() -> None:
    with pytest.raises(TargetRefused, match="weights of 5 bits; choose from 4, 8, 16"):
        linear(32, 64, 5)
    with pytest.raises(TargetRefused, match="groups of 48 columns; choose from 32, 64, 128"):
        linear(32, 96, 4, group=48)
    with pytest.raises(TargetRefused, match="8 bits with an offset"):
        linear(32, 64, 8, symmetric=False)
    with pytest.raises(TargetRefused, match="does not fill groups of 32"):
        linear(32, 80, 4)
