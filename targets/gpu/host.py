"""Which GPUs this machine has, asked of the vendor's driver; no GPU and no driver is the usual answer."""

import ctypes
from functools import cache
from pathlib import Path

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@cache
def cuda_architectures() -> tuple[str, ...]:
    """Return the architectures of this machine's CUDA devices, in order, such as `sm_90`."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = []
    for device in range(count.value):
        parts = []
        for attribute in (MAJOR, MINOR):
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return ()
            parts.append(str(value.value))
        found.append("sm_" + "".join(parts))
    return tuple(found)


@cache
def hip_architectures() -> tuple[str, ...]:
    """Return the architectures of this machine's ROCm devices, in order, such as `gfx942`.

    The kernel driver's topology tells them: `gfx_target_version` is 90402 for gfx942, 0 for a CPU.
    """
    found = []
    for file in sorted(Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "gfx_target_version" and int(value):
                major, minor, step = int(value) // 10000, int(value) // 100 % 100, int(value) % 100
                found.append(f"gfx{major}{minor:x}{step:x}")
    return tuple(found)
