"""PagedAttention: equal to numpy, and the same bits for a token alone, in any chunk, on any threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.paged import Batch, Cache, batch_of
from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa, host_isa
from tokc.targets.cpu.kernels.paged_attention import PagedAttention

Array = npt.NDArray[Any]
Align = Callable[[Array], Array]
PAGES, CONTEXT = 64, 512
# Of each kernel: heads, heads of the cache, dim, cache dtype, window
SHAPES = (
    (9, 3, 64, "f16", 0),
    (4, 4, 32, "f32", 0),
    (8, 2, 128, "f16", 0),
    (4, 1, 256, "f16", 70),
    (9, 3, 64, "int8", 0),
    (6, 2, 32, "int8", 20),
    (14, 2, 64, "f32", 33),
    (9, 3, 64, "int4", 0),
    (8, 2, 96, "int4", 25),
)
# Positions at the edges of pages and of blocks of 64, a long chunk, decodes beside it.
CHUNKS = [(0, 1), (15, 16), (16, 17), (63, 64), (64, 65), (0, 77), (120, 150), (200, 201)]


def kernels(isa: Isa) -> list[PagedAttention]:
    return [
        PagedAttention(isa, heads, kv_heads, dim, 16, dtype, dim**-0.5, window, CONTEXT, True, True)
        for heads, kv_heads, dim, dtype, window in SHAPES
    ]


class Case:
    """A filled cache, the queries of a step and what they attend to."""

    def __init__(
        self,
        kernel: PagedAttention,
        align: Align,
        chunks: list[tuple[int, int]],
        pages: int = PAGES,
        context: int = CONTEXT,
    ) -> None:
        rng = np.random.default_rng(11)
        self.kernel, self.align = kernel, align
        self.batch = batch_of(chunks, rng, pages=pages, blocks=context // 16)
        self.cache = Cache(pages, kernel.kv_heads, kernel.dim, kernel.kv_dtype)
        for sequence, (_, length) in enumerate(chunks):
            for position in range(length):
                k, v = rng.standard_normal((2, kernel.kv_heads, kernel.dim)).astype(np.float32)
                self.cache.write(self.batch.block_tables[sequence, position // 16], position % 16, k * 2, v)
        rows = len(self.batch.positions)
        self.q = rng.standard_normal((rows, kernel.heads * kernel.dim)).astype(np.float32)
        self.arrays = [align(array) for array in self.cache.arrays]

    def run(
        self, library: Any, batch: Batch, q: Array, threads: int, *, together: bool = False
    ) -> dict[str, Array]:
        """Return y, xq, xs and xsum."""
        kernel, align, rows = self.kernel, self.align, len(q)
        width = kernel.heads * kernel.dim
        shapes: dict[str, tuple[int, Any]] = {
            "y": (width, np.float32),
            "xq": (width, np.int8),
            "xs": (width // 32, np.float32),
            "xsum": (width // 32, np.int32),
        }
        results = {
            name: align(np.zeros((rows, columns), dtype))
            for name, (columns, dtype) in shapes.items()
            if name in kernel.args
        }
        scratch = align(np.zeros(kernel.scratch_bytes // 4 * threads, np.float32))
        operands = [align(q), *self.arrays, *map(align, batch.integers), scratch, *results.values()]
        library.run(kernel, *operands, rows=rows, threads=threads, together=together)
        return results

    def expected(self) -> Array:
        """Return y in f64."""
        kernel, batch = self.kernel, self.batch
        y = np.zeros((len(self.q), kernel.heads, kernel.dim))
        for row, (position, sequence) in enumerate(zip(batch.positions, batch.sequences, strict=True)):
            k, v = self.cache.read(batch.block_tables[sequence], position + 1)
            if kernel.window:
                k, v = k[-kernel.window :], v[-kernel.window :]
            q = self.q[row].reshape(kernel.kv_heads, -1, kernel.dim).astype(np.float64)
            scores = np.einsum("hgd,jhd->hgj", q, k) * kernel.scale
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            y[row] = np.einsum("hgj,jhd->hgd", weights, v).reshape(kernel.heads, kernel.dim)
        return y.reshape(len(self.q), -1)


def same(a: dict[str, Array], b: dict[str, Array], rows: Any = slice(None)) -> bool:
    return all(a[name].tobytes() == b[name][rows].tobytes() for name in a)


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=lambda index: "-".join(map(str, SHAPES[index])))
def test_attention_over_pages_equals_numpy(index: int, isa: Isa, load_kernels: Any, align: Align) -> None:
    library, case = load_kernels(kernels(isa), isa), Case(kernels(isa)[index], align, CHUNKS)
    results = case.run(library, case.batch, case.q, 1)
    np.testing.assert_allclose(results["y"], case.expected(), rtol=2e-5, atol=1e-5)
    groups = results["y"].reshape(len(case.q), -1, 32)
    scale = (np.abs(groups).max(-1) / np.float32(127)).astype(np.float32)
    quants = np.rint(groups * (np.float32(1) / scale)[..., None]).astype(np.int8)
    assert results["xs"].tobytes() == scale.tobytes()
    assert results["xq"].tobytes() == quants.tobytes()
    assert (results["xsum"] == quants.astype(np.int32).sum(-1)).all()


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=lambda index: "-".join(map(str, SHAPES[index])))
def test_a_token_has_the_same_bits_alone_in_chunks_and_on_threads(
    index: int, isa: Isa, load_kernels: Any, align: Align
) -> None:
    library, case = load_kernels(kernels(isa), isa), Case(kernels(isa)[index], align, CHUNKS)
    whole = case.run(library, case.batch, case.q, 1)
    for threads in (2, 3, 16):
        assert same(case.run(library, case.batch, case.q, threads), whole)
    for row in range(len(case.q)):
        alone = case.run(library, case.batch.rows(slice(row, row + 1)), case.q[row : row + 1], 2)
        assert same(alone, whole, slice(row, row + 1)), f"row {row}"
    rng = np.random.default_rng(5)
    for first, size in ((5, 9), (5, 40), (37, 2), (30, 64)):
        rows = slice(first, first + size)
        chunk = case.run(library, case.batch.rows(rows), case.q[rows], 3)
        assert same(chunk, whole, rows), f"rows {first} to {first + size}"
    shuffled = rng.permutation(len(case.q))
    assert same(case.run(library, case.batch.rows(shuffled), case.q[shuffled], 2), whole, shuffled)


def test_sequences_may_share_pages(isa: Isa, load_kernels: Any, align: Align) -> None:
    library, case = load_kernels(kernels(isa), isa), Case(kernels(isa)[0], align, [(90, 97), (90, 97)])
    tables = case.batch.block_tables.copy()
    tables[1] = tables[0]
    q = np.concatenate([case.q[:7], case.q[:7]])
    results = case.run(library, Batch(case.batch.positions, case.batch.sequences, tables), q, 2)
    assert results["y"][:7].tobytes() == results["y"][7:].tobytes()


def test_parts_of_a_sequence_may_end_in_any_order(isa: Isa, load_kernels: Any, align: Align) -> None:
    library = load_kernels(kernels(isa), isa)
    case = Case(kernels(isa)[0], align, [(499, 500), (130, 131)])
    alone = case.run(library, case.batch, case.q, 1)
    np.testing.assert_allclose(alone["y"], case.expected(), rtol=2e-5, atol=1e-5)
    for _ in range(20):
        assert same(case.run(library, case.batch, case.q, 3, together=True), alone)


@pytest.mark.parametrize("index", [0, 4, 6, 7], ids=lambda index: "-".join(map(str, SHAPES[index])))
def test_parts_of_a_run_of_several_tokens_keep_apart(
    index: int, isa: Isa, load_kernels: Any, align: Align
) -> None:
    library = load_kernels(kernels(isa), isa)
    for chunks in (
        [(128, 136)],
        [(499, 506)],
        [(300, 303), (490, 495)],
        [(200, 202), (450, 454), (505, 507)],
    ):
        case = Case(kernels(isa)[index], align, chunks, pages=96)
        whole = case.run(library, case.batch, case.q, 1)
        np.testing.assert_allclose(whole["y"], case.expected(), rtol=2e-5, atol=1e-5)
        for threads in (2, 3, 8):
            assert same(case.run(library, case.batch, case.q, threads), whole), f"{chunks}, {threads} threads"


def test_parts_grow_with_the_position(load_kernels: Any, align: Align) -> None:
    isa = host_isa()
    kernel = PagedAttention(isa, 2, 1, 32, 16, "f32", 0.2, 0, 8192, True, True)
    case = Case(kernel, align, [(2040, 2060), (4097, 4098)], pages=512, context=8192)
    library = load_kernels([kernel], isa)
    whole = case.run(library, case.batch, case.q, 1)
    np.testing.assert_allclose(whole["y"], case.expected(), rtol=2e-5, atol=1e-5)
    for row in (0, 7, 8, 9, 19, 20):
        alone = case.run(library, case.batch.rows(slice(row, row + 1)), case.q[row : row + 1], 4)
        assert same(alone, whole, slice(row, row + 1)), f"row {row}"


def test_a_cache_may_exceed_2_gib(load_kernels: Any, align: Align) -> None:
    isa = host_isa()
    kernel = PagedAttention(isa, 8, 8, 256, 16, "f16", 0.1, 0, 64, False, True)
    pages = 40_000
    far = Cache.__new__(Cache)
    far.dtype, far.scales = "f16", []
    far.key = np.zeros((pages, 8, 256, 16), np.float16)
    far.value = np.zeros((pages, 8, 16, 256), np.float16)
    assert far.key.nbytes > 1 << 31
    case = Case(kernel, align, [(20, 21)])
    expected = case.run(load_kernels([kernel], isa), case.batch, case.q, 1)["y"]
    for block in range(2):
        page = case.batch.block_tables[0, block]
        case.batch.block_tables[0, block] = pages - 1 - block
        far.key[pages - 1 - block], far.value[pages - 1 - block] = (
            case.cache.key[page],
            case.cache.value[page],
        )
    case.arrays = far.arrays
    assert case.run(load_kernels([kernel], isa), case.batch, case.q, 1)["y"].tobytes() == expected.tobytes()


def test_heads_that_do_not_divide_are_refused(isa: Isa) -> None:
    with pytest.raises(TargetRefused, match="9 heads do not divide into 4"):
        PagedAttention(isa, 9, 4, 64, 16, "f16", 0.125, 0, 512, False, True)
