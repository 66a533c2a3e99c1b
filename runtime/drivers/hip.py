"""HIP's module API, in libamdhip64 of ROCm, called through ctypes.

Source: HIP Runtime API Reference, rocm.docs.amd.com/projects/HIP, "Modules", "Graphs", "Streams".
"""

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.drivers.abi import KernelAbi
from tokc.runtime.drivers.base import Bytes, DeviceProperties, Extent, Handle, Parameters, host_bytes

LIBRARIES = ("libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5")
NO_DEVICE = 100  # hipErrorNoDevice
NON_BLOCKING = 1  # hipStreamNonBlocking
CAPTURE_THREAD_LOCAL = 1  # hipStreamCaptureModeThreadLocal
NAME_BYTES = 256
# hipDeviceProp_t begins with the name and holds the architecture's name at a place that changed with ROCm 6;
# it is found by its spelling. The structure has 1472 bytes in ROCm 6 and may grow.
PROPERTIES_BYTES = 8192
_ARCHITECTURE = re.compile(rb"gfx[0-9a-f]+")

_Pointer, _Size, _Unsigned, _Int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int
_OutPointer, _OutSize = ctypes.POINTER(_Pointer), ctypes.POINTER(_Size)
# The arguments of every function that is called; all return hipError_t, an int.
SIGNATURES: Mapping[str, Sequence[Any]] = {
    "hipInit": (_Unsigned,),
    "hipGetDeviceCount": (ctypes.POINTER(_Int),),
    "hipSetDevice": (_Int,),
    "hipDeviceGetName": (ctypes.c_char_p, _Int, _Int),
    "hipMemGetInfo": (_OutSize, _OutSize),
    "hipMalloc": (_OutPointer, _Size),
    "hipFree": (_Pointer,),
    "hipHostMalloc": (_OutPointer, _Size, _Unsigned),
    "hipHostFree": (_Pointer,),
    "hipMemcpyHtoDAsync": (_Pointer, _Pointer, _Size, _Pointer),
    "hipMemcpyDtoHAsync": (_Pointer, _Pointer, _Size, _Pointer),
    "hipMemsetD8Async": (_Pointer, ctypes.c_ubyte, _Size, _Pointer),
    "hipModuleLoadData": (_OutPointer, ctypes.c_char_p),
    "hipModuleUnload": (_Pointer,),
    "hipModuleGetFunction": (_OutPointer, _Pointer, ctypes.c_char_p),
    "hipModuleLaunchKernel": (_Pointer, *[_Unsigned] * 7, _Pointer, _Pointer, _Pointer),
    "hipStreamCreateWithFlags": (_OutPointer, _Unsigned),
    "hipStreamDestroy": (_Pointer,),
    "hipStreamSynchronize": (_Pointer,),
    "hipEventCreate": (_OutPointer,),
    "hipEventDestroy": (_Pointer,),
    "hipEventRecord": (_Pointer, _Pointer),
    "hipEventSynchronize": (_Pointer,),
    "hipEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _Pointer, _Pointer),
    "hipStreamBeginCapture": (_Pointer, _Int),
    "hipStreamEndCapture": (_Pointer, _OutPointer),
    "hipGraphInstantiate": (_OutPointer, _Pointer, _OutPointer, ctypes.c_char_p, _Size),
    "hipGraphLaunch": (_Pointer, _Pointer),
    "hipGraphDestroy": (_Pointer,),
    "hipGraphExecDestroy": (_Pointer,),
}


class HipDriver:
    """One ROCm device."""

    backend = "hip"
    parameters_end = 3  # HIP_LAUNCH_PARAM_END

    def __init__(self, ordinal: int = 0) -> None:
        """Take a device by number, as HIP_VISIBLE_DEVICES counts them.

        Raises: ArtifactRefused if ROCm or the device is missing.
        """
        self._api = load_library()
        self._ordinal = ordinal
        count = ctypes.c_int()
        error = self._api.hipInit(0) or self._api.hipGetDeviceCount(ctypes.byref(count))
        if error and error != NO_DEVICE:
            raise self._failed("hipInit", error)
        if ordinal >= count.value:
            raise ArtifactRefused(
                f"there is no ROCm device {ordinal}; this machine has {count.value}",
                hint="`rocm-smi` lists them; HIP_VISIBLE_DEVICES hides some",
            )
        self.activate()
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("hipDeviceGetName", name, NAME_BYTES, ordinal)
        _, total = self._memory()
        self.properties = DeviceProperties(name.value.decode(), self._architecture(), total)

    def activate(self) -> None:
        """Make the device that of the calling thread."""
        self._call("hipSetDevice", self._ordinal)

    def free_bytes(self) -> int:
        """Return how much memory of the device is free."""
        return self._memory()[0]

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of the device's memory, aligned to 256."""
        return self._made("hipMalloc", size)

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("hipFree", address)

    def allocate_host(self, size: int) -> Bytes:
        """Return pinned memory."""
        address = self._made("hipHostMalloc", size, 0)
        return host_bytes(address, size)

    def free_host(self, memory: Bytes) -> None:
        """Give back what `allocate_host` returned."""
        self._call("hipHostFree", memory.ctypes.data)

    def copy_to_device(self, address: int, source: Bytes, stream: Handle) -> None:
        """Queue a copy from pinned memory."""
        self._call("hipMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: Bytes, address: int, stream: Handle) -> None:
        """Queue a copy to pinned memory."""
        self._call("hipMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, stream)

    def clear(self, address: int, size: int, stream: Handle) -> None:
        """Queue zeroing of `size` bytes."""
        self._call("hipMemsetD8Async", address, 0, size, stream)

    def load_module(self, image: bytes) -> Handle:
        """Load a code object."""
        return self._made("hipModuleLoadData", image)

    def unload_module(self, module: Handle) -> None:
        """Let go of code."""
        self._call("hipModuleUnload", module)

    def function(self, module: Handle, kernel: KernelAbi) -> Handle:
        """Return a module's function; shared memory needs no leave here."""
        return self._made("hipModuleGetFunction", module, kernel.entry.encode())

    def launch(
        self, function: Handle, grid: Extent, kernel: KernelAbi, parameters: Parameters, stream: Handle
    ) -> None:
        """Queue a kernel over a grid."""
        error = self._api.hipModuleLaunchKernel(
            function, *grid, kernel.threads, 1, 1, kernel.shared_bytes, stream, None, parameters.extra
        )
        if error:
            raise self._failed(f"launch of '{kernel.symbol}' over {grid}", error)

    def create_stream(self) -> Handle:
        """Return a queue that does not wait for the default one."""
        return self._made("hipStreamCreateWithFlags", NON_BLOCKING)

    def destroy_stream(self, stream: Handle) -> None:
        """Let go of a queue."""
        self._call("hipStreamDestroy", stream)

    def synchronize(self, stream: Handle) -> None:
        """Wait for all that was queued."""
        self._call("hipStreamSynchronize", stream)

    def create_event(self) -> Handle:
        """Return an event that can be timed."""
        return self._made("hipEventCreate")

    def destroy_event(self, event: Handle) -> None:
        """Let go of an event."""
        self._call("hipEventDestroy", event)

    def record(self, event: Handle, stream: Handle) -> None:
        """Queue the event."""
        self._call("hipEventRecord", event, stream)

    def wait(self, event: Handle) -> None:
        """Wait until the event happened."""
        self._call("hipEventSynchronize", event)

    def elapsed_s(self, start: Handle, end: Handle) -> float:
        """Return the seconds between two events that happened."""
        milliseconds = ctypes.c_float()
        self._call("hipEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value * 1e-3

    def begin_capture(self, stream: Handle) -> None:
        """Record what this thread queues from here on instead of running it."""
        self._call("hipStreamBeginCapture", stream, CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: Handle) -> Handle:
        """Return what was recorded as a graph that can be launched."""
        graph = ctypes.c_void_p()
        self._call("hipStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return self._made("hipGraphInstantiate", graph, None, None, 0)
        finally:
            self._call("hipGraphDestroy", graph)

    def abandon_capture(self, stream: Handle) -> None:
        """Throw away what was recorded."""
        graph = ctypes.c_void_p()
        if not self._api.hipStreamEndCapture(stream, ctypes.byref(graph)):
            self._api.hipGraphDestroy(graph)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """Queue all that a graph holds."""
        self._call("hipGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Let go of a graph."""
        self._call("hipGraphExecDestroy", graph)

    def close(self) -> None:
        """Do nothing: a process shares the device's context, which nobody owns."""

    def _architecture(self) -> str:
        """Return the architecture, such as `gfx942`, without its features."""
        ask = getattr(self._api, "hipGetDevicePropertiesR0600", None) or self._api.hipGetDeviceProperties
        properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
        if error := ask(properties, _Int(self._ordinal)):
            raise self._failed("hipGetDeviceProperties", error)
        found = _ARCHITECTURE.search(properties.raw, NAME_BYTES)
        if found is None:
            raise ArtifactRefused("the ROCm driver names no architecture of the device")
        return found[0].decode()

    def _memory(self) -> tuple[int, int]:
        free, total = _Size(), _Size()
        self._call("hipMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _made(self, name: str, *arguments: object) -> int:
        """Return what a function of the library put where its first argument points."""
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        assert made.value is not None, f"{name} made nothing"
        return made.value

    def _call(self, name: str, *arguments: object) -> None:
        error = getattr(self._api, name)(*arguments)
        if error:
            raise self._failed(name, error)

    def _failed(self, what: str, error: int) -> TokcError:
        said, name = (
            getattr(self._api, function)(error).decode()
            for function in ("hipGetErrorString", "hipGetErrorName")
        )
        return TokcError(f"ROCm: {what} failed: {said} ({name})")


@cache
def load_library() -> ctypes.CDLL:
    """Load libamdhip64 and declare the functions that are called.

    Raises: ArtifactRefused if ROCm is not installed, or lacks one of them.
    """
    library = _open_library()
    try:
        for name, arguments in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(arguments), ctypes.c_int
        for name in ("hipGetErrorString", "hipGetErrorName"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_int], ctypes.c_char_p
    except AttributeError as error:
        raise ArtifactRefused(
            f"libamdhip64 is too old: {error}", hint="ROCm 5 and later have every function"
        ) from error
    return library


def _open_library() -> ctypes.CDLL:
    folder = Path(os.environ.get("ROCM_PATH", "/opt/rocm"), "lib")
    for name in (str(folder / LIBRARIES[0]), *LIBRARIES):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ArtifactRefused(
        f"this machine has no ROCm: {LIBRARIES[0]} is neither in '{folder}' nor on the loader's path",
        hint="install ROCm's runtime, or say where it is in ROCM_PATH",
    )
