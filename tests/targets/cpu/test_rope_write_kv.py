"""RopeWriteKV: equal to numpy in every cache dtype, and the same bits for a token alone."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.paged import Batch, Cache, batch_of, hadamard
from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.rope_write_kv import RopeWriteKV

Array = npt.NDArray[Any]
Align = Callable[[Array], Array]
HEADS, KV_HEADS = 6, 2
PAGES, CONTEXT = 24, 128


def kernels(isa: Isa) -> list[RopeWriteKV]:
    made = []
    plain = itertools.product((32, 64, 256), ("f32", "f16", "int8"), (False, True))
    for dim, dtype, norm in (*plain, (64, "int4", False), (96, "int4", True)):
        stride = (HEADS + 2 * KV_HEADS) * dim
        made.append(RopeWriteKV(isa, HEADS, KV_HEADS, dim, stride, stride, stride, dtype, 16, norm, 1e-6))
    return made


def rotate(x: Array, weight: Array | None, cos: Array, sin: Array) -> Array:
    """Norm and rotate heads x[rows, heads, dim] in f64."""
    x = x.astype(np.float64)
    if weight is not None:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight
    low, high = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


class Case:
    """One step's inputs for one kernel."""

    def __init__(self, kernel: RopeWriteKV, align: Align) -> None:
        rng = np.random.default_rng(3)
        self.kernel, self.align = kernel, align
        self.batch = batch_of([(0, 35), (14, 18), (100, 101)], rng, pages=PAGES, blocks=CONTEXT // 16)
        rows = len(self.batch.positions)
        self.qkv = align(rng.standard_normal((rows, kernel.q_stride)).astype(np.float32))
        angles = rng.uniform(0, 6, (CONTEXT, kernel.dim // 2))
        self.cos, self.sin = (
            align(np.cos(angles).astype(np.float32)),
            align(np.sin(angles).astype(np.float32)),
        )
        norms = rng.uniform(0.5, 2, (2, kernel.dim)).astype(np.float32)
        self.norms = [align(norm) for norm in norms] if kernel.qk_norm else []

    def parts(self) -> list[Array]:
        """Return q, k and v as heads."""
        dim = self.kernel.dim
        edges = [HEADS * dim, (HEADS + KV_HEADS) * dim]
        return [part.reshape(len(part), -1, dim) for part in np.split(self.qkv, edges, axis=1)]

    def run(self, library: Any, batch: Batch, qkv: Array, threads: int) -> tuple[Array, Cache]:
        dim, align = self.kernel.dim, self.align
        cache = Cache(PAGES, KV_HEADS, dim, self.kernel.kv_dtype)
        out = align(np.zeros((len(qkv), HEADS * dim), np.float32))
        views = [qkv, qkv[:, HEADS * dim :], qkv[:, (HEADS + KV_HEADS) * dim :]]
        integers = [batch.positions, batch.sequences, batch.block_tables, batch.info]
        operands = [*views, self.cos, self.sin, *self.norms, *map(align, integers), out, *cache.arrays]
        library.run(self.kernel, *operands, rows=len(qkv), threads=threads)
        return out, cache


@pytest.mark.parametrize("index", range(20))
def test_heads_are_rotated_and_written_to_their_pages(
    index: int, isa: Isa, load_kernels: Any, align: Align
) -> None:
    library, kernel = load_kernels(kernels(isa), isa), kernels(isa)[index]
    case = Case(kernel, align)
    batch, (q, k, v) = case.batch, case.parts()
    out, cache = case.run(library, batch, case.qkv, 1)
    cos, sin = case.cos[batch.positions], case.sin[batch.positions]
    q_norm, k_norm = case.norms or (None, None)
    mixed = hadamard(kernel.dim) if kernel.kv_dtype == "int4" else np.eye(kernel.dim)
    q_rot = (rotate(q, q_norm, cos, sin) @ mixed).reshape(out.shape)
    np.testing.assert_allclose(out, q_rot, rtol=1e-5, atol=2e-6)
    expected = Cache(PAGES, KV_HEADS, kernel.dim, kernel.kv_dtype)
    rotated = (rotate(k, k_norm, cos, sin) @ mixed).astype(np.float32)
    for row, (position, sequence) in enumerate(zip(batch.positions, batch.sequences, strict=True)):
        page = batch.block_tables[sequence, position // 16]
        expected.write(page, position % 16, rotated[row], v[row])
    for made, right in zip(cache.arrays, expected.arrays, strict=True):
        codes = made.dtype == np.uint8
        got, wanted = (np.stack([one & 15, one >> 4]) if codes else one for one in (made, right))
        assert not codes or np.mean(got != wanted) < 1e-3
        whole = made.dtype in (np.int8, np.uint8)
        tolerance = 1.0 if whole else 2e-3 if made.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(
            got.astype(np.float32), wanted.astype(np.float32), rtol=tolerance / 2, atol=tolerance
        )
    assert cache.value.tobytes() == expected.value.tobytes()


@pytest.mark.parametrize("index", range(20))
def test_a_token_alone_and_on_three_threads_writes_the_same_bits(
    index: int, isa: Isa, load_kernels: Any, align: Align
) -> None:
    library, case = load_kernels(kernels(isa), isa), Case(kernels(isa)[index], align)
    out, cache = case.run(library, case.batch, case.qkv, 1)
    again, cache_again = case.run(library, case.batch, case.qkv, 3)
    assert again.tobytes() == out.tobytes()
    assert [a.tobytes() for a in cache_again.arrays] == [a.tobytes() for a in cache.arrays]
    for row in (0, 17, 36):
        alone, _ = case.run(library, case.batch.rows(slice(row, row + 1)), align(case.qkv[row : row + 1]), 2)
        assert alone.tobytes() == out[row].tobytes()


def test_other_pages_than_of_16_tokens_are_refused(isa: Isa) -> None:
    with pytest.raises(TargetRefused, match="pages of 32 tokens"):
        RopeWriteKV(isa, 1, 1, 64, 64, 64, 64, "f16", 32, False, 1e-6)
