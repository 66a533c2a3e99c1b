"""The peak kernels: they do every product that they are counted for, on every instruction set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.targets.cpu.conftest import Loader
from tokc.cost.launch_work import F32, INT8
from tokc.cost.peaks import measure_peaks
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernel_cache import KernelCache
from tokc.targets.cpu.kernels.peak import CHAINS, UNROLLED, Peak, peaks
from tokc.targets.cpu.link import link

Array = npt.NDArray[Any]
ROWS, THREADS = 3, 2


def test_every_product_is_added(load_kernels: Loader, isa: Isa, align: Callable[[Array], Array]) -> None:
    kernels = [Peak(isa, F32), Peak(isa, INT8)]
    library, shape = load_kernels(kernels, isa), (THREADS, CHAINS, isa.lanes)
    state = align(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    expected = state.copy()
    library.run(kernels[0], state, rows=ROWS, threads=THREADS)
    for _ in range(ROWS * UNROLLED):
        expected = expected * np.float32(0.5) + np.float32(1)
    assert (state == expected).all()
    sums = align(np.zeros(shape, np.int32))
    library.run(kernels[1], sums, rows=ROWS, threads=THREADS)
    if isa.dot == "pmaddubsw":
        assert (sums == pairs_of_bytes(ROWS * UNROLLED)).all()
    else:
        assert (sums == ROWS * UNROLLED * 3 * (1 + 2 + 3 + 4)).all()


def pairs_of_bytes(times: int) -> np.int32:
    """Return the i32 whose unsigned bytes were `times` multiplied with 4, 3, 2, 1 and added to its halves."""
    halves = np.zeros(2, np.int16)
    for _ in range(times):
        low = halves.view(np.uint8).astype(np.int32) * np.array([4, 3, 2, 1])
        halves = (halves + np.clip(low.reshape(2, 2).sum(1), -32768, 32767)).astype(np.int16)
    return np.int32(halves.view(np.int32)[0])


def test_a_bench_measures_them(isa: Isa, tmp_path: Path) -> None:
    kernels = peaks(isa)
    library = tmp_path / "step.so"
    library.write_bytes(link(kernels, KernelCache().compile(kernels, isa), isa))
    probes = [{"kernel": index, "work": kernel.launch.work.to_json()} for index, kernel in enumerate(kernels)]
    found = measure_peaks(library, {"probes": probes}, THREADS)
    assert set(found) == ({F32} if isa.amx else {F32, INT8})
    assert all(1e8 < rate < 1e15 for rate in found.values())


def test_an_artifact_without_probes_has_no_peaks(tmp_path: Path) -> None:
    assert measure_peaks(tmp_path / "none.so", {"launches": []}, THREADS) == {}
