"""Libraries for every instruction set are linked here, and need nothing but an old glibc."""

import ctypes
from typing import Any

import pytest

from tests.targets.cpu import test_paged_attention, test_rope_write_kv, test_row_kernels
from tests.targets.cpu.elf import read_library
from tests.targets.cpu.linear_cases import cases
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernel_cache import KernelCache
from tokc.targets.cpu.kernels.elementwise import GatherRows
from tokc.targets.cpu.link import link

MACHINES = {"x86_64": 62, "aarch64": 183}
LIBC = ("libc.so.6", "libpthread.so.0")
LOADERS = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def every_kernel(isa: Isa) -> list[Any]:
    """Return kernels of all families; of attention, which takes seconds to compile, the one over f16."""
    kernels = [
        *(case.kernel for case in cases(isa, 1)),
        *test_row_kernels.all_kernels(isa),
        GatherRows(isa, 64, 64),
        *test_rope_write_kv.kernels(isa)[:6],
        next(kernel for kernel in test_paged_attention.kernels(isa) if kernel.kv_dtype == "f16"),
    ]
    return list({kernel.symbol: kernel for kernel in kernels}.values())


@pytest.mark.parametrize("name", ISAS)
def test_a_library_of_all_kernels_needs_nothing_but_libc(name: str) -> None:
    """No helper of a compiler's own library (outline atomics, soft f16), no symbol newer than glibc 2.28."""
    isa = ISAS[name]
    kernels = every_kernel(isa)
    library = read_library(link(kernels, KernelCache().compile(kernels, isa), isa))
    assert library.machine == MACHINES[isa.triple.split("-")[0]]
    assert library.needed <= {*LIBC, *LOADERS}
    assert library.glibc <= (2, 28)
    assert {"pthread_create", "free"} <= library.undefined, "the reader misses symbols"
    libc = [ctypes.CDLL(each) for each in LIBC]
    assert [each for each in sorted(library.undefined) if not any(hasattr(c, each) for c in libc)] == []
