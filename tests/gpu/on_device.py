"""This machine's GPU, and single kernels run on it as the executor runs them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.targets.gpu.interpreted import Array, extent
from tokc.errors import ArtifactRefused
from tokc.runtime.drivers.abi import KernelAbi
from tokc.runtime.drivers.base import Driver, Parameters
from tokc.runtime.drivers.cuda import CudaDriver
from tokc.runtime.drivers.hip import HipDriver
from tokc.runtime.drivers.memory import DeviceMemory
from tokc.targets.gpu.codegen import compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES
from tokc.targets.gpu.kernel import Kernel

KINDS = {"cuda": "cuda", "hip": "rocm"}
CODE = {"cuda": "cubin", "hip": "hsaco"}


def device() -> Driver:
    """Return a driver of the first device, or skip the test saying why there is none."""
    reasons = []
    for make in (CudaDriver, HipDriver):
        try:
            driver: Driver = make()
        except ArtifactRefused as error:
            reasons.append(error.problem)
            continue
        if driver.properties.arch in ARCHITECTURES:
            return driver
        reasons.append(f"nothing is compiled for '{driver.properties.arch}'")
        driver.close()
    pytest.skip("; ".join(reasons))


def target_of(driver: Driver) -> str:
    """Return the target to build for, such as `cuda:sm_90`."""
    return f"{KINDS[driver.backend]}:{driver.properties.arch}"


class KernelsOnDevice:
    """Compiles kernels for a device and launches them over arrays of the host."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._stream = driver.create_stream()
        self._made: dict[Kernel, tuple[Any, KernelAbi, Any]] = {}

    def launch(self, kernel: Kernel, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
        """Run a kernel over arrays by argument name, in place, as `interpret` does."""
        function, abi, _ = self._function(kernel)
        driver, stream, memory = self.driver, self._stream, DeviceMemory(self.driver)
        try:
            held = {}
            for name, _ in kernel.args:
                pinned = memory.allocate_host(arrays[name].nbytes)[: arrays[name].nbytes]
                pinned[:] = arrays[name].reshape(-1).view(np.uint8)
                held[name] = memory.allocate(arrays[name].nbytes, name), pinned
                driver.copy_to_device(*held[name], stream)
            pointers = [address for address, _ in held.values()] + [0] * abi.scratch_pointers
            parameters = Parameters(pointers, end=driver.parameters_end)
            x, y, z = (*(extent(axis, sizes) for axis in kernel.grid), 1, 1, 1)[:3]
            driver.launch(function, (x, y, z), abi, parameters, stream)
            for address, pinned in held.values():
                driver.copy_to_host(pinned, address, stream)
            driver.synchronize(stream)
            for name, (_, pinned) in held.items():
                arrays[name][...] = pinned.view(arrays[name].dtype).reshape(arrays[name].shape)
        finally:
            memory.close()

    def close(self) -> None:
        """Let go of the code and the device."""
        for _, _, module in self._made.values():
            self.driver.unload_module(module)
        self.driver.destroy_stream(self._stream)
        self.driver.close()

    def _function(self, kernel: Kernel) -> tuple[Any, KernelAbi, Any]:
        if kernel not in self._made:
            (made,) = compile_kernels([kernel], ARCHITECTURES[self.driver.properties.arch])
            abi = KernelAbi(
                symbol=made.symbol,
                entry=made.entry,
                file="",
                ptx=None,
                threads=made.threads,
                shared_bytes=made.resources.shared_bytes,
                parameters=made.parameters,
                scratch_pointers=made.scratch_pointers,
            )
            module = self.driver.load_module(made.files[CODE[self.driver.backend]])
            self._made[kernel] = self.driver.function(module, abi), abi, module
        return self._made[kernel]
