"""Products of experts against their formula in f64; company changes no bit, and no other expert is read."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import DTYPES, Array, interpret
from tests.targets.gpu.test_linear import linear, rounding_between_tiles, weight
from tests.targets.gpu.test_moe import grouped
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.gpu.kernels.moe import MoeGroup
from tokc.targets.gpu.kernels.moe_linear import MoeLinear
from tokc.targets.gpu.packing import unpack
from tokc.targets.gpu.tiles import Tile

GRIDS = [(16, True, 32), (8, True, 32), (4, True, 32), (4, False, 32), (4, True, 128)]
UNTOUCHED = 7.0


def every(kernel: MoeLinear) -> Linear:
    """Return the linear layer whose weight is that of all experts."""
    return replace(kernel.linear, n=kernel.linear.n * kernel.experts)


def chosen_by(kernel: MoeLinear, tokens: int, seed: int = 4) -> npt.NDArray[np.int32]:
    """Return experts [tokens, k], the lower ones more often."""
    rng = np.random.default_rng(seed)
    likely = 1 / np.arange(1, kernel.experts + 1)
    rows = [rng.choice(kernel.experts, kernel.top_k, False, likely / likely.sum()) for _ in range(tokens)]
    return np.stack(rows).astype(np.int32)


def inputs(kernel: MoeLinear, tokens: int) -> npt.NDArray[np.float16]:
    rows = tokens * (1 if kernel.by_token else kernel.top_k)
    return np.random.default_rng(5).normal(0, 1, (rows, kernel.linear.x_stride)).astype(np.float16)


def run(kernel: MoeLinear, parts: dict[str, Array], x: Array, chosen: Array, bucket: int = 0) -> Array:
    """Launch for the tokens of `chosen`, over a grid of `bucket` tokens if that is more."""
    y = np.full((chosen.size + 1, kernel.linear.n), UNTOUCHED, DTYPES[kernel.linear.y_dtype])
    starts, order = grouped(MoeGroup(kernel.experts, kernel.top_k), chosen)
    arrays = {**parts, "x": x, "starts": starts, "order": order, "y": y}
    interpret(kernel, arrays, {"tokens": max(len(chosen), bucket)})
    assert (y[-1] == UNTOUCHED).all()
    return y[:-1]


def expected_of(kernel: MoeLinear, parts: dict[str, Array], x: Array, chosen: Array) -> Array:
    w = unpack(parts, every(kernel)).reshape(kernel.experts, kernel.linear.n, kernel.linear.k)
    rows = np.repeat(x, kernel.top_k, 0) if kernel.by_token else x
    return np.einsum("sk,snk->sn", rows[:, : kernel.linear.k].astype(np.float64), w[chosen.reshape(-1)])


@pytest.mark.parametrize(("bits", "symmetric", "group"), GRIDS)
@pytest.mark.parametrize(("by_token", "tokens", "y_dtype"), [(True, 3, "f16"), (False, 70, "f32")])
def test_each_slot_is_its_experts_product(
    bits: int, symmetric: bool, group: int, by_token: bool, tokens: int, y_dtype: str
) -> None:
    one = linear(48, 128, bits, symmetric=symmetric, group=group, y_dtype=y_dtype, x_stride=136)
    kernel = MoeLinear(one, 5, 2, by_token, 128).variant(wide=tokens > 16)
    parts, chosen = weight(every(kernel)), chosen_by(kernel, tokens)
    x = inputs(kernel, tokens)
    found = run(kernel, parts, x, chosen, bucket=4)
    expected = expected_of(kernel, parts, x, chosen)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_experts_that_no_token_chose_are_not_read() -> None:
    kernel = MoeLinear(linear(32, 64, 16), 6, 2, True, 16)
    parts, chosen = weight(every(kernel)), np.array([[4, 1], [1, 4], [4, 1]], np.int32)
    parts["weight"].reshape(6, 32, 64)[[0, 2, 3, 5]] = np.nan
    assert np.isfinite(run(kernel, parts, inputs(kernel, 3), chosen)).all()


@pytest.mark.parametrize(("bits", "symmetric"), [(16, True), (8, True), (4, False)])
def test_a_token_has_the_same_bits_alone_and_in_company(bits: int, symmetric: bool) -> None:
    one = linear(32, 256, bits, symmetric=symmetric, tile=Tile(32, 64, 4, 3))
    narrow = MoeLinear(one, 3, 2, True, 128)
    wide = replace(narrow, linear=replace(one, tile_rows=32))
    assert narrow.order == wide.order
    parts, x = rounding_between_tiles(every(narrow), 44)
    chosen = chosen_by(narrow, 44)
    assert np.bincount(chosen.reshape(-1)).max() > wide.linear.tile_rows, "some expert has two tiles"
    whole = run(wide, parts, x, chosen)
    assert (whole != expected_of(wide, parts, x, chosen)).mean() > 0.1, "no order would show"
    for first, count in ((0, 1), (28, 16)):
        here = slice(first, first + count)
        alone = run(narrow, parts, x[here].copy(), chosen[here].copy())
        np.testing.assert_array_equal(alone, whole[2 * first : 2 * (first + count)])


def test_a_grid_covers_every_routing() -> None:
    """The worst routings: all tokens to the same experts, and to as many as there are."""
    for top_k, experts, tokens in ((1, 3, 130), (8, 24, 20), (8, 64, 1)):
        kernel = MoeLinear(linear(32, 64, 16), experts, top_k, True, 512).variant(wide=tokens > 16)
        same = np.tile(np.arange(top_k, dtype=np.int32), (tokens, 1))
        spread = (np.arange(tokens * top_k, dtype=np.int32) % experts).reshape(tokens, top_k)
        parts, x = weight(every(kernel)), inputs(kernel, tokens)
        for chosen in (same, spread):
            assert (run(kernel, parts, x, chosen) != UNTOUCHED).all()


def test_rows_that_do_not_fill_groups_of_scales_are_refused() -> None:
    with pytest.raises(TargetRefused, match="an expert of 40 rows does not fill groups of 16"):
        MoeLinear(linear(40, 64, 4), 4, 2, True, 16)
