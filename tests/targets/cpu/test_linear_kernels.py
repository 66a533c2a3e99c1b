"""Linear kernels: equal to numpy, and every row the same bits alone, in any batch and on any thread count."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.linear_cases import GROUP, STRIDE, Case, K, N, cases
from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.packing import pack_quant, packed_bytes

Array = npt.NDArray[Any]
Run = Callable[..., Array]


@pytest.fixture
def run(load_kernels: Any, isa: Isa, align: Callable[[Array], Array]) -> Run:
    """Return what runs rows [first, last) of a case."""
    return caller(load_kernels([case.kernel for case in cases(isa, 1)], isa), align)


def caller(library: Any, align: Callable[[Array], Array]) -> Run:
    """Return what runs rows [first, last) of a case whose kernel is in a library."""

    def call(case: Case, first: int = 0, last: int | None = None, threads: int = 1) -> Array:
        rows = {name: align(value[first:last]) for name, value in case.rows.items()}
        count = len(next(iter(rows.values())))
        y = align(np.full((count, case.width), np.nan, np.float32))
        inputs = {**{name: align(value) for name, value in case.fixed.items()}, **rows, "y": y}
        library.run(case.kernel, *(inputs[name] for name in case.kernel.args), rows=count, threads=threads)
        return y[:, : case.expected.shape[1]]

    return call


def test_kernels_equal_numpy(run: Run, isa: Isa) -> None:
    for case in cases(isa):
        error = np.abs(run(case) - case.expected).max() / np.abs(case.expected).max()
        assert error < 1e-6, case.kernel.symbol


def test_a_row_has_the_same_bits_alone_and_in_any_batch(run: Run, isa: Isa) -> None:
    for case in cases(isa):
        whole = run(case)
        for first, last in ((0, 1), (36, 37), (3, 7), (5, 18), (1, 37)):
            assert (run(case, first, last) == whole[first:last]).all(), (case.kernel.symbol, first, last)


def test_threads_share_the_work_and_change_no_bit(run: Run, isa: Isa) -> None:
    for case in cases(isa):
        whole = run(case)
        for threads in (2, 3, 11):
            assert (run(case, threads=threads) == whole).all(), (case.kernel.symbol, threads)


def test_more_rows_than_a_block_are_the_same_bits(run: Run, isa: Isa) -> None:
    for case in cases(isa, 530):
        whole = run(case, threads=2)
        error = np.abs(whole - case.expected).max() / np.abs(case.expected).max()
        assert error < 1e-6, case.kernel.symbol
        assert (run(case, 509, 530) == whole[509:]).all(), case.kernel.symbol


def test_packed_bytes_announces_the_packed_size() -> None:
    rng = np.random.default_rng(3)
    for isa in ISAS.values():
        for bits, block in itertools.product((2, 3, 4, 8), (32, 64, 128)):
            kernel = QuantLinear(isa, N, K, bits, symmetric=True, bias=False, y_stride=STRIDE, block=block)
            q = rng.integers(0, 1 << min(bits, 7), (N, K)).astype(np.uint8 if bits <= 4 else np.int8)
            packed = pack_quant(q, np.ones((N, -(-K // block)), np.float16), None, kernel)
            assert packed.nbytes == packed_bytes(kernel)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("block", [32, 128])
def test_a_packed_weight_takes_its_bits_and_a_scale_a_block(bits: int, block: int) -> None:
    kernel = QuantLinear(ISAS["x86-64-v3"], 512, 1024, bits, True, bias=False, y_stride=512, block=block)
    assert packed_bytes(kernel) == 512 * 1024 * bits // 8 + 512 * 1024 // block * 2


def test_a_weight_of_minus_128_is_refused_where_it_would_be_inexact() -> None:
    kernel = QuantLinear(ISAS["x86-64-v3"], N, K, 8, symmetric=True, bias=False, y_stride=STRIDE)
    q = np.full((N, K), -128, np.int8)
    with pytest.raises(TargetRefused, match="-128"):
        pack_quant(q, np.ones((N, K // GROUP), np.float16), None, kernel)
