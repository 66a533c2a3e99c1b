"""Runs the PTX of a GPU kernel on a CPU, over numpy arrays in place, called as the runtime calls it."""

import struct
from collections.abc import Mapping

from tests import ptx
from tests.ptx.compile import Compiled
from tests.targets.gpu.interpreted import Array, extent
from tokc.targets.gpu.kernel import Kernel

SCRATCH_POINTERS = 2


def emulate(
    kernel: Kernel, program: Compiled, arrays: Mapping[str, Array], sizes: Mapping[str, int]
) -> ptx.Counts:
    """Launch a kernel; each array is an allocation of its own, at a multiple of 256 bytes.

    The parameters are the pointers in order, then the two scratch pointers that Triton adds, null.
    """
    memory = ptx.Memory()
    pointers = {name: memory.put(arrays[name]) for name, _ in kernel.args}
    values = [*pointers.values(), *[0] * SCRATCH_POINTERS]
    loaded = ptx.load(program.text, program.shared_bytes)
    grid = [extent(axis, sizes) for axis in kernel.grid]
    counts = loaded.launch(grid, struct.pack(f"<{len(values)}Q", *values), memory)
    for name, pointer in pointers.items():
        arrays[name][...] = memory.get(pointer, arrays[name])
    return counts
