"""Fixtures of the native kernel tests, with the kernels of each emulated instruction set behind them."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.targets.cpu.emulated.emulator import EMULATED, EmulatedKernels, qemu, why_not
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.isa import ISAS, Isa

Loader = Callable[[Sequence[Kernel], Isa], EmulatedKernels]


@pytest.fixture(params=[isa.name for isa in EMULATED])
def isa(request: pytest.FixtureRequest) -> Isa:
    """Return each instruction set that QEMU runs."""
    wanted = ISAS[request.param]
    if qemu(wanted) is None:
        pytest.skip(why_not(wanted))
    return wanted


@pytest.fixture(scope="session")
def load_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """Return what compiles kernels and starts them under QEMU, each set once a session."""
    cache: dict[tuple[str, ...], EmulatedKernels] = {}

    def load(kernels: Sequence[Kernel], isa: Isa) -> EmulatedKernels:
        key = (isa.name, *(kernel.symbol for kernel in kernels))
        if key not in cache:
            cache[key] = EmulatedKernels(kernels, isa, tmp_path_factory.mktemp("emulated"))
        return cache[key]

    yield load
    for kernels in cache.values():
        kernels.close()
