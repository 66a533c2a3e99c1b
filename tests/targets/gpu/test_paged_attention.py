"""Paged attention against its definition in f64, and against itself bit for bit in every form and tiling."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import info, interpret, products_in_order
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.paged_attention import PagedAttention, Tile, default_tile, split_tokens

PAGE = 16
Tiles = Sequence[tuple[int, int]]


@pytest.fixture(autouse=True)
def _bits() -> Iterator[None]:
    with products_in_order():
        yield


@dataclass
class Step:
    """A ragged step: sequence s has contexts[s] cached tokens, of which the last counts[s] ask."""

    heads: int
    kv_heads: int
    dim: int
    contexts: tuple[int, ...]
    counts: tuple[int, ...]
    dtype: str = "f16"
    arrays: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    keys: list[npt.NDArray[np.float64]] = field(default_factory=list)
    values: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)
        blocks = [-(-context // PAGE) for context in self.contexts]
        stride, pages = max(blocks) + 1, sum(blocks) + 3
        order = random.permutation(pages)
        tables = np.full((len(self.contexts), stride), order[-1], np.int32)
        self._make_cache(pages)
        for seq, context in enumerate(self.contexts):
            tables[seq, : blocks[seq]] = order[sum(blocks[:seq]) :][: blocks[seq]]
            self._fill(random, tables[seq], context)
        tokens = sum(self.counts)
        self.arrays |= {
            "q": random.normal(0, 2, (tokens, self.heads * self.dim)).astype(np.float16),
            "block_tables": tables,
            "sequences": np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts),
            "positions": np.concatenate(
                [np.arange(c - n, c, dtype=np.int32) for c, n in zip(self.contexts, self.counts, strict=True)]
            ),
        }

    def _make_cache(self, pages: int) -> None:
        """Fill what no token has written with what must not be read."""
        shapes = {"cache_key": (self.dim, PAGE), "cache_value": (PAGE, self.dim)}
        for name, shape in shapes.items():
            empty = (np.float16, np.nan) if self.dtype == "f16" else (np.int8, 99)
            self.arrays[name] = np.full((pages, self.kv_heads, *shape), empty[1], empty[0])
        if self.dtype == "int8":
            for name in ("key_scale", "value_scale"):
                self.arrays[name] = np.full((pages, self.kv_heads, PAGE), np.nan, np.float32)

    def _fill(self, random: np.random.Generator, table: npt.NDArray[np.int32], context: int) -> None:
        slots = (table[np.arange(context) // PAGE], slice(None), np.arange(context) % PAGE)
        for name, kept in (("key", self.keys), ("value", self.values)):
            cache = self.arrays[f"cache_{name}"]
            axes = cache.transpose(0, 1, 3, 2) if name == "key" else cache
            x = random.normal(0, 1, (context, self.kv_heads, self.dim))
            if self.dtype == "f16":
                axes[slots] = x
                kept.append(axes[slots].astype(np.float64))
            else:
                scale = (np.abs(x).max(-1) / 127).astype(np.float32)
                self.arrays[f"{name}_scale"][slots] = scale
                axes[slots] = np.rint(x / scale[..., None])
                kept.append(axes[slots].astype(np.float64) * scale[..., None])

    def tiles(self, most: int) -> list[tuple[int, int]]:
        """Cut each sequence's tokens into tiles of at most so many."""
        found, first = [], 0
        for count in self.counts:
            found += [(first + at, min(most, count - at)) for at in range(0, count, most)]
            first += count
        return found

    def expected(self, scale: float, window: int = 0) -> npt.NDArray[np.float64]:
        """Compute softmax(q k^T scale) v a head from the definition."""
        q = self.arrays["q"].astype(np.float64).reshape(-1, self.heads, self.dim)
        y = np.zeros_like(q)
        for token, (seq, own) in enumerate(
            zip(self.arrays["sequences"], self.arrays["positions"], strict=True)
        ):
            seen = slice(max(0, own - window + 1) if window else 0, own + 1)
            for head in range(self.heads):
                key, value = (
                    part[seq][seen, head // (self.heads // self.kv_heads)]
                    for part in (self.keys, self.values)
                )
                score = key @ q[token, head] * scale
                weight = np.exp(score - score.max())
                y[token, head] = weight @ value / weight.sum()
        return y.reshape(len(q), -1)

    def kernel(
        self,
        *,
        wide: bool,
        rows: int = 16,
        block: int = 32,
        split: int = 64,
        window: int = 0,
        tree: bool = False,
    ) -> PagedAttention:
        """Return a kernel of small tiles for this step's shape."""
        return PagedAttention(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.dim,
            page=PAGE,
            dtype=self.dtype,
            scale=self.dim**-0.5,
            context=256,
            wide=wide,
            window=window,
            tree=tree,
            shape=Tile(rows, block, 4, 2),
            split=split,
        )

    def run(
        self,
        kernel: PagedAttention,
        tiles: Tiles,
        chosen: slice = slice(None),
        **more: npt.NDArray[np.generic],
    ) -> npt.NDArray[np.float16]:
        """Run a kernel, and its reduction if it is narrow, over some tokens; tiles count from the first."""
        arrays = self.arrays | more
        for name in ("q", "sequences", "positions"):
            arrays[name] = np.ascontiguousarray(arrays[name][chosen])
        tokens = len(arrays["q"])
        y = np.full((tokens + 1, self.heads * self.dim), 7, np.float16)
        spare = np.array([*tiles, (10**6, 1)], np.int32)
        sizes = {
            "tokens": tokens,
            "tiles": len(tiles),
            "splits": int(arrays["positions"].max()) // kernel.split + 1,
            "blocks": arrays["block_tables"].shape[1],
        }
        arrays |= {"query_tiles": spare, "info": info(**sizes), "y": y}
        arrays["partials"] = np.full(kernel.partials_shape, np.nan, np.float32)
        arrays["statistics"] = np.full(kernel.statistics_shape, np.nan, np.float32)
        # One program more on each axis than the step has, as in a launch for a larger bucket.
        larger = {name: size + 1 for name, size in sizes.items()}
        interpret(kernel, arrays, larger)
        if not kernel.wide:
            assert (y == 7).all()
            interpret(kernel.reduce, arrays, larger)
        assert (y[tokens] == 7).all(), "a row past the step was written"
        return y[:tokens]


@pytest.mark.parametrize("dtype", ["f16", "int8"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 32), (6, 2, 64), (4, 1, 128), (8, 1, 80)])
def test_both_forms_attend_to_the_tokens_up_to_their_own(
    heads: int, kv_heads: int, dim: int, dtype: str
) -> None:
    step = Step(heads, kv_heads, dim, contexts=(71, 133, 5), counts=(4, 3, 5), dtype=dtype)
    wanted = step.expected(dim**-0.5)
    wide = step.kernel(wide=True)
    found = step.run(wide, step.tiles(wide.tile))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=4e-3)
    narrow = step.run(step.kernel(wide=False), step.tiles(wide.tile))
    np.testing.assert_array_equal(narrow.view(np.int16), found.view(np.int16))


@pytest.mark.parametrize(("window", "dtype"), [(0, "f16"), (20, "f16"), (0, "int8")])
def test_a_token_has_the_same_bits_in_every_step_and_tile(window: int, dtype: str) -> None:
    step = Step(3, 1, 32, contexts=(150, 40), counts=(31, 13), dtype=dtype)
    wide, narrow = step.kernel(wide=True, window=window), step.kernel(wide=False, window=window)
    assert wide.tile == 5
    whole = step.run(wide, step.tiles(5)).view(np.int16)
    np.testing.assert_allclose(whole.view(np.float16), step.expected(32**-0.5, window), rtol=0, atol=4e-3)
    np.testing.assert_array_equal(step.run(wide, step.tiles(2)).view(np.int16), whole)
    for first, tiles in ((3, [(0, 4)]), (22, [(0, 2), (2, 5), (7, 1), (8, 1), (9, 2)])):
        chosen = slice(first, first + sum(count for _, count in tiles))
        alone = step.run(narrow, tiles, chosen).view(np.int16)
        np.testing.assert_array_equal(alone, whole[chosen])


def test_a_window_hides_what_lies_before_it_even_over_whole_splits() -> None:
    step = Step(4, 2, 32, contexts=(200, 30), counts=(3, 2))
    # The first token sees 158..197: what lies before may be gone, and its pages with it.
    tables = step.arrays["block_tables"]
    step.arrays["cache_value"][tables[0, 9], :, :14] = np.nan
    step.arrays["cache_key"][tables[0, 9], :, :, :14] = np.nan
    tables[0, :9] = 10**6
    for wide in (True, False):
        found = step.run(step.kernel(wide=wide, window=40), step.tiles(3))
        np.testing.assert_allclose(found, step.expected(32**-0.5, 40), rtol=0, atol=4e-3)


def test_large_scores_neither_overflow_nor_lose_the_rest() -> None:
    step = Step(2, 1, 32, contexts=(100,), counts=(2,))
    step.arrays["q"] = (step.arrays["q"].astype(np.float32) * 500).astype(np.float16)
    found = step.run(step.kernel(wide=False), step.tiles(2))
    np.testing.assert_allclose(found, step.expected(32**-0.5), rtol=0, atol=4e-3)


def test_a_tree_hides_branches_and_a_chain_is_the_causal_mask() -> None:
    step = Step(4, 2, 32, contexts=(70, 40), counts=(5, 3))
    starts = np.repeat([65, 37], step.counts)
    # Of the first sequence: 0 -> (1, 2), 1 -> 3, 2 -> 4; of the second a chain.
    bits = np.array([0b1, 0b11, 0b101, 0b1011, 0b10101, 0b1, 0b11, 0b111])
    tree = np.stack([starts, bits], 1).astype(np.int32)
    causal = step.run(step.kernel(wide=True), step.tiles(4))
    for wide in (True, False):
        found = step.run(step.kernel(wide=wide, tree=True), step.tiles(4), tree=tree)
        np.testing.assert_array_equal(found[5:], causal[5:])
        for token in range(5):
            path = [*range(65), *(65 + bit for bit in range(5) if bits[token] >> bit & 1)]
            branch = Step(4, 2, 32, contexts=(len(path),), counts=(1,))
            branch.keys, branch.values = [step.keys[0][path]], [step.values[0][path]]
            branch.arrays["q"] = step.arrays["q"][token : token + 1]
            np.testing.assert_allclose(found[token], branch.expected(32**-0.5)[0], rtol=0, atol=4e-3)


def test_splits_are_bounded_in_number_and_depend_on_the_context_alone() -> None:
    assert [split_tokens(context) for context in (1, 4096, 16384, 16385, 131072)] == [
        256,
        256,
        256,
        512,
        2048,
    ]


@pytest.mark.parametrize("architecture", ["", "sm_100", "gfx942", "gfx1100"])
@pytest.mark.parametrize("dtype", ["f16", "int8"])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_both_forms_sum_blocks_of_one_size_and_rows_alike(dim: int, dtype: str, architecture: str) -> None:
    forms = [
        PagedAttention(
            heads=36,
            kv_heads=4,
            head_dim=dim,
            page=16,
            dtype=dtype,
            scale=0.1,
            context=4096,
            wide=wide,
            architecture=architecture,
        )
        for wide in (True, False)
    ]
    tiles = [default_tile(form) for form in forms]
    assert len({(tile.block, tile.rows // tile.warps) for tile in tiles}) == 1
    assert all(
        form.tile * 9 <= tile.rows < (form.tile + 1) * 9 for form, tile in zip(forms, tiles, strict=True)
    )
    assert len({form.symbol for form in forms}) == 2


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"dtype": "f32"}, "no GPU kernel reads a cache of 'f32'; choose from f16, int8"),
        ({"head_dim": 512}, "up to 256 columns, not 512"),
        ({"page": 8}, "pages of a power of two from 16 on, not 8"),
        ({"kv_heads": 3}, "4 query heads do not share 3 key heads evenly"),
        ({"scale": 0.0}, "a positive scale, not 0.0"),
    ],
)
def test_what_no_kernel_computes_is_refused(fields: dict[str, object], problem: str) -> None:
    usual: dict[str, object] = {
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "page": 16,
        "dtype": "f16",
        "scale": 0.125,
        "context": 512,
        "wide": True,
    }
    with pytest.raises(TargetRefused, match=problem):
        PagedAttention(**(usual | fields))
