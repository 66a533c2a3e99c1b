"""PagedAttention over trees: each node has the bits of its path as a sequence of its own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.targets.cpu.paged import Array, Batch, Cache
from tests.targets.cpu.test_paged_attention import Align, Case, same
from tests.targets.cpu.trees import TreeBatch, batch_with_trees, random_tree
from tokc.runtime.speculation.tree import TokenTree
from tokc.targets.cpu.isa import Isa, host_isa
from tokc.targets.cpu.kernels.paged_attention import PagedAttention

PAGES, CONTEXT = 640, 1280  # beyond 1024 positions, parts have twice as many blocks
# Of each kernel: heads, heads of the cache, dim, cache dtype, window, cap of the scores
SHAPES = (
    (9, 3, 64, "f16", 0, 0.0),
    (4, 4, 32, "f32", 0, 2.5),
    (4, 1, 256, "f16", 70, 0.0),
    (6, 2, 32, "int8", 20, 0.0),
    (9, 3, 64, "int4", 0, 0.0),
    (8, 2, 96, "int4", 5, 2.5),
    (18, 1, 32, "int8", 0, 0.0),
)


def kernels(isa: Isa) -> list[PagedAttention]:
    return [
        PagedAttention(
            isa, heads, kv_heads, dim, 16, dtype, dim**-0.5, window, CONTEXT, True, True, cap, True
        )
        for heads, kv_heads, dim, dtype, window, cap in SHAPES
    ]


def chain_kernel(kernel: PagedAttention) -> PagedAttention:
    return replace(kernel, trees=False)


class TreeCase(Case):
    """A filled cache and the queries of a step with trees."""

    def __init__(
        self, kernel: PagedAttention, align: Align, starts: list[tuple[int, int, TokenTree]], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        self.kernel, self.align, self.starts = kernel, align, starts
        self.batch: TreeBatch = batch_with_trees(starts, rng, pages=PAGES, blocks=CONTEXT // 16)
        self.cache = Cache(PAGES, kernel.kv_heads, kernel.dim, kernel.kv_dtype)
        for sequence, (_, last, tree) in enumerate(starts):
            entry = np.arange(last + len(tree))
            k, v = rng.standard_normal((2, len(entry), kernel.kv_heads, kernel.dim)).astype(np.float32)
            self.cache.write(self.batch.block_tables[sequence, entry // 16], entry % 16, k * 2, v)
        self.q = rng.standard_normal((len(self.batch.positions), kernel.heads * kernel.dim)).astype(
            np.float32
        )
        self.arrays = [align(array) for array in self.cache.arrays]

    def alone(self, library: Any, row: int) -> dict[str, Array]:
        """Return the row's results where its path is the sequence, without trees."""
        batch, sequence = self.batch, self.batch.sequences[row]
        table, position = batch.block_tables[sequence], batch.positions[row]
        _, last, tree = self.starts[sequence]
        kept = [array.copy() for array in self.cache.arrays]
        chain = Case.__new__(Case)
        chain.kernel, chain.align = chain_kernel(self.kernel), self.align
        chain.arrays = [self.align(array) for array in kept]
        node = batch.entries[row] - last
        for depth, one in enumerate(tree.path(node) if node >= 0 else []):
            source, target = last + one, last + depth
            for name, new, old in zip(("key", "value", "", ""), chain.arrays, kept, strict=False):
                slots = (table[target // 16], target % 16), (table[source // 16], source % 16)
                (page, slot), (old_page, old_slot) = slots
                if name == "value":
                    new[page, :, slot] = old[old_page, :, old_slot]
                else:
                    new[page, ..., slot] = old[old_page, ..., old_slot]
        own = Batch(np.array([position]), np.array([sequence]), batch.block_tables)
        return chain.run(library, own, self.q[row : row + 1], 1)


def check(case: TreeCase, library: Any, *threads: int) -> None:
    alone = [case.alone(library, row) for row in range(len(case.q))]
    for count in threads:
        found = case.run(library, case.batch, case.q, count)
        for row, expected in enumerate(alone):
            assert same(expected, found, slice(row, row + 1)), f"row {row}, {count} threads"


# Trees within a block, over its edge, at it; behind a prompt's chunk; none; over the edge of the parts.
STARTS = ((20, 21, 7), (60, 61, 20), (62, 64, 9), (100, 131, 3), (5, 6, 0), (190, 191, 32), (1019, 1020, 24))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(SHAPES)), ids=lambda index: "-".join(map(str, SHAPES[index])))
def test_a_node_has_the_bits_that_its_path_has_without_trees(
    index: int, isa: Isa, load_kernels: Any, align: Align
) -> None:
    kernel, rng = kernels(isa)[index], np.random.default_rng(index)
    library = load_kernels([kernel, chain_kernel(kernel)], isa)
    starts = [(first, last, random_tree(rng, nodes)) for first, last, nodes in STARTS]
    case = TreeCase(kernel, align, starts, index)
    check(case, library, 1, 3)
    few = TreeCase(kernel, align, [(190, 191, random_tree(rng, 6))], index)
    check(few, library, 2, 4)  # whose blocks are dealt to threads


places = st.integers(0, 200) | st.integers(1000, 1030)
starts = st.lists(st.tuples(places, st.integers(1, 3), st.integers(0, 12)), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=starts, threads=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_any_tree_at_any_place_has_the_bits_of_its_paths(
    places: list[tuple[int, int, int]], threads: int, seed: int, load_kernels: Any, align: Align
) -> None:
    isa, rng = host_isa(), np.random.default_rng(seed)
    kernel = kernels(isa)[3]
    trees = [(first, first + count, random_tree(rng, nodes)) for first, count, nodes in places]
    case = TreeCase(kernel, align, trees, seed)
    check(case, load_kernels([kernel, chain_kernel(kernel)], isa), threads)
