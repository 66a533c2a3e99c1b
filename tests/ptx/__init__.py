"""Executes PTX on a CPU: `load` a kernel, put its operands into a `Memory`, `launch` it over a grid.

What a launch checks, each with a `Fault` that names the line of PTX, the source line, the CTA and the thread:

- every access to global memory lies within one allocation, and is aligned to its width; no two CTAs store
  different bytes in one place, but by atomic operations;
- every access to shared memory lies within the kernel's, is aligned, reads bytes that were written, and is
  separated by a barrier from what other warps do to the same bytes;
- cp.async: the bytes arrive when the thread waits for the group, and nobody touches them in between;
- wgmma: the results arrive when the warps wait for the group, the tiles in shared memory stay as they are
  until then, and a proxy fence separates them from the stores that filled them;
- barriers and collective instructions are reached by all threads; registers are written before they are read.

Numbers: every operation is rounded once, to nearest even, in the type that the instruction names; a matrix
product adds its terms to the accumulator one by one in the order of k, in f32 (integers: in s32). A GPU adds
the terms of one instruction in an order and precision of its own (fewer bits for fp8), so bits may differ.
The `.approx` instructions (ex2, rsqrt, ...) are computed to within a rounding of f32, closer than a GPU does.

Source: PTX ISA 9.x, NVIDIA.
"""

from tests.ptx.counts import Counts
from tests.ptx.faults import (
    BadArguments,
    DivergentBarrier,
    DivergentBranch,
    Fault,
    Misaligned,
    OutOfBounds,
    Race,
    UndefinedRegister,
    UninitializedRead,
    Unsupported,
)
from tests.ptx.kernel import Kernel, load
from tests.ptx.memory import Memory

__all__ = [
    "BadArguments",
    "Counts",
    "DivergentBarrier",
    "DivergentBranch",
    "Fault",
    "Kernel",
    "Memory",
    "Misaligned",
    "OutOfBounds",
    "Race",
    "UndefinedRegister",
    "UninitializedRead",
    "Unsupported",
    "load",
]
