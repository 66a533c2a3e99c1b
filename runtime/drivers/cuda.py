"""CUDA's driver API, through the package cuda-bindings.

Source: CUDA Driver API 13, docs.nvidia.com/cuda/cuda-driver-api.
"""

from typing import Any

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.drivers.abi import KernelAbi
from tokc.runtime.drivers.base import Bytes, DeviceProperties, Extent, Handle, Parameters, host_bytes

PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: pinned for every context
NAME_BYTES = 128
# More dynamic shared memory than this must be asked for, function by function.
COMMON_SHARED_BYTES = 48 * 1024


class CudaDriver:
    """One CUDA device and its primary context."""

    backend = "cuda"
    parameters_end = 0  # CU_LAUNCH_PARAM_END

    def __init__(self, ordinal: int = 0) -> None:
        """Take a device by number, as CUDA_VISIBLE_DEVICES counts them.

        Raises: ArtifactRefused if the package, the driver or the device is missing.
        """
        self._api = _api()
        count = int(self._call("cuDeviceGetCount"))
        if ordinal >= count:
            raise ArtifactRefused(
                f"there is no CUDA device {ordinal}; this machine has {count}",
                hint="`nvidia-smi` lists them; CUDA_VISIBLE_DEVICES hides some",
            )
        self._device = self._call("cuDeviceGet", ordinal)
        self._context: Any = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        attributes = self._api.CUdevice_attribute
        major, minor = (
            int(self._call("cuDeviceGetAttribute", attribute, self._device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        name = bytes(self._call("cuDeviceGetName", NAME_BYTES, self._device)).split(b"\0")[0].decode()
        _, total = self._call("cuMemGetInfo")
        self.properties = DeviceProperties(name, f"sm_{major}{minor}", int(total))

    def activate(self) -> None:
        """Make the context that of the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Return how much memory of the device is free."""
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of the device's memory, aligned to 256."""
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("cuMemFree", address)

    def allocate_host(self, size: int) -> Bytes:
        """Return pinned memory."""
        address = int(self._call("cuMemHostAlloc", size, PORTABLE))
        return host_bytes(address, size)

    def free_host(self, memory: Bytes) -> None:
        """Give back what `allocate_host` returned."""
        self._call("cuMemFreeHost", memory.ctypes.data)

    def copy_to_device(self, address: int, source: Bytes, stream: Handle) -> None:
        """Queue a copy from pinned memory."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: Bytes, address: int, stream: Handle) -> None:
        """Queue a copy to pinned memory."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def clear(self, address: int, size: int, stream: Handle) -> None:
        """Queue zeroing of `size` bytes."""
        self._call("cuMemsetD8Async", address, 0, size, stream)

    def load_module(self, image: bytes) -> Handle:
        """Load a cubin, or PTX, which the driver compiles."""
        return self._call("cuModuleLoadData", image if image.startswith(b"\x7fELF") else image + b"\0")

    def unload_module(self, module: Handle) -> None:
        """Let go of code."""
        self._call("cuModuleUnload", module)

    def function(self, module: Handle, kernel: KernelAbi) -> Handle:
        """Return a module's function, allowed as much shared memory as it takes."""
        function = self._call("cuModuleGetFunction", module, kernel.entry.encode())
        if kernel.shared_bytes > COMMON_SHARED_BYTES:
            attribute = self._api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, kernel.shared_bytes)
        return function

    def launch(
        self, function: Handle, grid: Extent, kernel: KernelAbi, parameters: Parameters, stream: Handle
    ) -> None:
        """Queue a kernel over a grid."""
        block = (kernel.threads, 1, 1)
        (error,) = self._api.cuLaunchKernel(
            function, *grid, *block, kernel.shared_bytes, stream, 0, parameters.extra
        )
        if error:
            raise self._failed(f"launch of '{kernel.symbol}' over {grid}", error)

    def create_stream(self) -> Handle:
        """Return a queue that does not wait for the default one."""
        return self._call("cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def destroy_stream(self, stream: Handle) -> None:
        """Let go of a queue."""
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        """Wait for all that was queued."""
        self._call("cuStreamSynchronize", stream)

    def create_event(self) -> Handle:
        """Return an event that can be timed."""
        return self._call("cuEventCreate", self._api.CUevent_flags.CU_EVENT_DEFAULT)

    def destroy_event(self, event: Handle) -> None:
        """Let go of an event."""
        self._call("cuEventDestroy", event)

    def record(self, event: Handle, stream: Handle) -> None:
        """Queue the event."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: Handle) -> None:
        """Wait until the event happened."""
        self._call("cuEventSynchronize", event)

    def elapsed_s(self, start: Handle, end: Handle) -> float:
        """Return the seconds between two events that happened."""
        return float(self._call("cuEventElapsedTime", start, end)) * 1e-3

    def begin_capture(self, stream: Handle) -> None:
        """Record what this thread queues from here on instead of running it."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded as a graph that can be launched."""
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def abandon_capture(self, stream: Handle) -> None:
        """Throw away what was recorded."""
        error, graph = self._api.cuStreamEndCapture(stream)
        if not error:
            self._api.cuGraphDestroy(graph)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """Queue all that a graph holds."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Let go of a graph."""
        self._call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Let go of the context."""
        if self._context is not None:
            self._context = None
            self._call("cuDevicePrimaryCtxRelease", self._device)

    def _call(self, name: str, *arguments: object) -> Any:
        """Return what a function of the driver returned besides its error, which is raised."""
        error, *found = getattr(self._api, name)(*arguments)
        if error:
            raise self._failed(name, error)
        return found[0] if len(found) == 1 else found

    def _failed(self, what: str, error: Any) -> TokcError:
        return _failed(self._api, what, error)


def _api() -> Any:
    """Return the package's module of the driver API, initialized.

    Raises: ArtifactRefused if the package, the driver or every device is missing.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise ArtifactRefused(
            "an artifact for CUDA is run through the package cuda-bindings, which is missing",
            hint="install the extra `cuda` too: pip install 'WHEEL[cuda]', or '.[cuda]' in a clone",
        ) from error
    try:
        (error_code,) = driver.cuInit(0)
    except RuntimeError as error:  # the package looks for the library at the first call
        raise ArtifactRefused(
            "this machine has no CUDA driver: libcuda.so.1 is not found",
            hint="install NVIDIA's driver, or build the artifact for this machine with --target cpu",
        ) from error
    if error_code == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        raise ArtifactRefused(
            "this machine has no CUDA device",
            hint="`nvidia-smi` lists them; CUDA_VISIBLE_DEVICES hides some",
        )
    if error_code:
        raise _failed(driver, "cuInit", error_code)
    return driver


def _failed(api: Any, what: str, error: Any) -> TokcError:
    _, text = api.cuGetErrorString(error)
    said = text.decode() if isinstance(text, bytes) else str(error)
    name = getattr(error, "name", str(error))
    return TokcError(f"CUDA: {what} failed: {said} ({name})", hint=_HINTS.get(name))


_STICKY = "the device's context is lost; open the artifact again"
_HINTS = {
    "CUDA_ERROR_OUT_OF_MEMORY": "another process may hold the device's memory: `nvidia-smi` lists them",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _STICKY,
    "CUDA_ERROR_LAUNCH_FAILED": _STICKY,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the compiler that built the artifact",
}
