"""The compiled PTX of every kernel, executed, against its formula in f64.

The cases are those that test the same kernels in Triton's interpreter: here their launches execute PTX.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.ptx import Counts
from tests.ptx.compile import Compiler
from tests.targets.gpu import (
    test_elementwise,
    test_embedding,
    test_fp8_linear,
    test_gated_activation,
    test_gather_rows,
    test_int8_linear,
    test_linear,
    test_moe,
    test_moe_linear,
    test_paged_attention,
    test_ranks,
    test_rms_norm,
    test_rope_write_kv,
)
from tests.targets.gpu.interpreted import Array, info
from tests.targets.gpu.ptx.emulated import emulate
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.kernels.elementwise import Add
from tokc.targets.gpu.kernels.fp8_linear import Fp8Linear
from tokc.targets.gpu.kernels.moe_linear import MoeLinear
from tokc.targets.gpu.tiles import Tile

ARCHITECTURES = ("sm_80", "sm_90")
# How much more than the least a kernel may move between memory and a CTA.
MOVED = 1.1
CASES = (
    test_elementwise,
    test_embedding,
    test_gated_activation,
    test_gather_rows,
    test_int8_linear,
    test_linear,
    test_moe,
    test_moe_linear,
    test_paged_attention,
    test_ranks,
    test_rms_norm,
    test_rope_write_kv,
)


@dataclass
class Launches:
    """What the launches of a test counted, on one architecture."""

    architecture: str
    counts: list[Counts] = field(default_factory=list)

    def uses_warpgroups(self) -> bool:
        """Return whether any launch multiplied by wgmma."""
        return any(each.instructions["wgmma.mma_async"] for each in self.counts)


@pytest.fixture(params=ARCHITECTURES)
def launches(request: pytest.FixtureRequest, compiled: Compiler, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Let the cases execute PTX."""
    found = Launches(request.param)

    def execute(kernel: Kernel, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        found.counts.append(emulate(kernel, compiled(kernel, found.architecture), arrays, sizes))

    for module in CASES:
        monkeypatch.setattr(module, "interpret", execute)
    return found


def test_kernels_between_ranks(launches: Launches) -> None:
    test_ranks.test_parts_are_added_in_the_order_of_ranks_and_other_rows_left(4, 1100)
    test_ranks.test_columns_are_put_beside_each_other(2, 48)


def test_elementwise_kernels(launches: Launches) -> None:
    test_elementwise.test_pairs_are_added_and_multiplied_a_row_at_its_own_stride(Add, "f16", "f32", "f16")
    test_elementwise.test_activations_are_applied("gelu_tanh", "f16", "f16")
    test_elementwise.test_f16_is_held_within_its_range()


def test_gated_activation_reads_and_writes_each_byte_once(launches: Launches) -> None:
    for activation in test_gated_activation.GATES:
        test_gated_activation.test_it_computes_the_gate_and_leaves_other_rows(activation, 600, 1216)
        # Three f16 of each column of three tokens; rows of y start in the midst of a sector.
        assert launches.counts[-1].moved_bytes <= MOVED * 3 * 3 * 600 * 2


def test_embedding_and_gathered_rows(launches: Launches) -> None:
    test_embedding.test_rows_of_a_plain_table(96)
    test_embedding.test_rows_of_a_table_on_a_grid(128, 4, False, 32)
    test_gather_rows.test_it_copies_the_rows_and_leaves_those_past_the_count(1100, 1104, "f16")


def test_normalization(launches: Launches) -> None:
    test_rms_norm.test_it_normalizes_the_sum_and_leaves_other_rows(90, 100, add=True)
    test_rms_norm.test_it_normalizes_the_sum_and_leaves_other_rows(576, 576, add=False)
    # x and the weight are f32, as is one of the outputs; the other is f16.
    assert launches.counts[-1].moved_bytes <= MOVED * 3 * 576 * (4 + 4 + 4 + 2)


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_rotation_and_the_write_into_pages(launches: Launches, dtype: str) -> None:
    test_rope_write_kv.test_heads_are_rotated_and_written_at_their_place(6, 2, 64, (True, True), dtype)


@pytest.mark.parametrize(
    ("bits", "symmetric", "group", "block_n", "rows"),
    [
        (16, True, 32, 64, 64),
        (8, True, 32, 64, 16),
        (4, True, 128, 64, 16),
        (4, False, 32, 64, 64),
        (4, False, 32, 32, 16),
    ],
)
def test_linear_in_tiles_of_both_matrix_units(
    launches: Launches, bits: int, symmetric: bool, group: int, block_n: int, rows: int
) -> None:
    tile = Tile(block_n, 64 if bits == 16 else 128, warps=4, stages=3)
    kernel = test_linear.linear(72, 384, bits, symmetric=symmetric, group=group, tile=tile, tile_rows=rows)
    parts, x = test_linear.weight(kernel), test_linear.activations(kernel, 19)
    x[17:] = np.nan
    y = test_linear.run(kernel, parts, x, 17)
    wanted = x[:17].astype(np.float64) @ test_linear.unpack(parts, kernel).T
    np.testing.assert_allclose(y[:17], wanted, rtol=0, atol=3e-4 * np.abs(wanted).max())
    assert (y[17:] == test_linear.UNTOUCHED).all()
    assert launches.uses_warpgroups() == (launches.architecture == "sm_90" and block_n >= 64)
    # Each tile of rows reads the weight, each tile of the weight reads x.
    least = sum(part.nbytes for part in parts.values()) * -(-17 // rows) + x[:17].nbytes * -(-72 // block_n)
    assert launches.counts[-1].moved_bytes <= MOVED * (least + y[:17].nbytes)


def test_a_row_has_the_same_bits_in_narrow_and_wide_tiles(launches: Launches) -> None:
    narrow = test_linear.linear(56, 384, 4, symmetric=False, tile=Tile(64, 128, 4, 3))
    parts, x = test_linear.rounding_between_tiles(narrow, 20)
    wide = replace(narrow, tile_rows=64)
    whole = test_linear.run(wide, parts, x, 20)
    np.testing.assert_array_equal(test_linear.run(narrow, parts, x, 20), whole)


def test_ranges_of_columns_meet_in_memory(launches: Launches) -> None:
    test_linear.test_ranges_of_columns_that_are_dealt_to_programs_give_the_same_bits(4, symmetric=False)


def test_experts_are_chosen_grouped_and_combined(launches: Launches) -> None:
    test_moe.test_scores_are_the_products_in_f32(5, 64, 19)
    test_moe.test_the_largest_scores_are_chosen_and_weighed(6, 3, shared=True, normalize=False)
    test_moe.test_slots_are_sorted_by_expert_in_their_own_order(8, 3, 40)
    test_moe.test_slots_are_summed_by_weight(shared=True)


@pytest.mark.parametrize(("bits", "symmetric", "rows"), [(4, True, 16), (4, False, 64), (16, True, 64)])
def test_products_of_experts(launches: Launches, bits: int, symmetric: bool, rows: int) -> None:
    tile = Tile(64, 64 if bits == 16 else 128, warps=4, stages=3)
    one = test_linear.linear(96, 256, bits, symmetric=symmetric, tile=tile, tile_rows=rows)
    kernel = MoeLinear(one, 4, 2, True, 128)
    chosen = test_moe_linear.chosen_by(kernel, 9 if rows == 16 else 70)
    chosen[chosen == 2] = 3 - chosen[chosen == 2] % 2  # an expert that nobody takes
    chosen[:, 1] = (chosen[:, 0] + 1) % 4
    chosen[chosen == 2] = (chosen[chosen == 2] + 1) % 4
    parts = test_linear.weight(test_moe_linear.every(kernel))
    x = test_moe_linear.inputs(kernel, len(chosen))
    found = test_moe_linear.run(kernel, parts, x, chosen, bucket=16)
    wanted = test_moe_linear.expected_of(kernel, parts, x, chosen)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-4 * np.abs(wanted).max())
    assert launches.uses_warpgroups() == (launches.architecture == "sm_90")
    # Each tile of rows reads its expert's weights, each tile of the weight the rows that it multiplies.
    counts = np.bincount(chosen.reshape(-1), minlength=4)
    tiles, across = -(-counts // rows), 2
    weights = sum(part.nbytes for part in parts.values()) / 4 * tiles.sum()
    least = weights + x[0].nbytes * chosen.size * across + found.nbytes
    assert launches.counts[-1].moved_bytes <= MOVED * least


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_attention_in_both_forms(launches: Launches, dtype: str) -> None:
    step = test_paged_attention.Step(6, 2, 64, contexts=(71, 133, 5), counts=(4, 3, 5), dtype=dtype)
    shape = {"rows": 64, "block": 64, "split": 128}
    wide, narrow = (step.kernel(wide=wide, **shape) for wide in (True, False))
    found = step.run(wide, step.tiles(wide.tile))
    np.testing.assert_allclose(found, step.expected(64**-0.5), rtol=0, atol=4e-3)
    # Whole pages of keys and values, once: each sequence is one tile.
    slots = sum(
        -(-context // test_paged_attention.PAGE) * test_paged_attention.PAGE for context in step.contexts
    )
    per_slot = 64 * 2 if dtype == "f16" else 64 + 4
    least = 2 * slots * step.kv_heads * per_slot + 2 * found.nbytes
    assert launches.counts[-1].moved_bytes <= MOVED * least
    np.testing.assert_array_equal(step.run(narrow, step.tiles(narrow.tile)), found)
    assert launches.uses_warpgroups() == (launches.architecture == "sm_90")


@pytest.mark.parametrize(("dtype", "dim"), [("f16", 64), ("f16", 128), ("int8", 128)])
def test_attention_in_the_tiles_of_an_artifact(launches: Launches, dtype: str, dim: int) -> None:
    step = test_paged_attention.Step(6, 2, dim, contexts=(71, 340), counts=(4, 12), dtype=dtype)
    forms = (step.kernel(wide=wide, split=128) for wide in (True, False))
    wide, narrow = (replace(form, shape=None, context=512) for form in forms)
    found = step.run(wide, step.tiles(wide.tile))
    np.testing.assert_allclose(found, step.expected(dim**-0.5), rtol=0, atol=4e-3)
    np.testing.assert_array_equal(step.run(narrow, step.tiles(narrow.tile)), found)


def test_products_of_int8(launches: Launches) -> None:
    test_int8_linear.test_it_computes_the_product_and_leaves_rows_past_the_count(80, 336, "f16", bias=True)
    assert launches.counts[-1].matrix > 0


@pytest.mark.parametrize(("architecture", "in_blocks"), [("sm_89", False), ("sm_90", False), ("sm_90", True)])
def test_products_of_fp8(compiled: Compiler, architecture: str, in_blocks: bool) -> None:
    kernel = Fp8Linear(144, 336, True, 352, "f16", in_blocks=in_blocks)
    arrays, wanted = test_fp8_linear.inputs(kernel, "fp8e4nv", 19)
    y = np.full((19, 144), 7, np.float16)
    given = arrays | {"info": info(tokens=18), "y": y}
    counts = emulate(kernel, compiled(kernel, architecture), given, {"tokens": 19})
    np.testing.assert_allclose(y[:18], wanted[:18], rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert (y[18:] == 7).all()
    assert counts.matrix > 0
