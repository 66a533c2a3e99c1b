"""Short kernels of one CTA around a few instructions of PTX."""

import struct

import numpy as np

from tests import ptx
from tests.targets.gpu.interpreted import Array

BITS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
HEADER = """.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet({parameters}
)
.reqntid {threads}
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    {declared}
    mov.u32 %r39, %tid.x;
{body}
    ret;
}}
"""


def kernel(body: str, pointers: int, *, threads: int = 32, shared: int = 0, declared: str = "") -> ptx.Kernel:
    """Return a kernel of so many pointers; %r39 is the thread, other registers are free."""
    parameters = ",".join(f"\n    .param .u64 .ptr .global .align 1 p{each}" for each in range(pointers))
    text = HEADER.format(parameters=parameters, threads=threads, declared=declared, body=body)
    return ptx.load(text, shared)


def launch(made: ptx.Kernel, memory: ptx.Memory, *pointers: int, grid: int = 1) -> ptx.Counts:
    """Launch a kernel of pointers."""
    return made.launch((grid,), struct.pack(f"<{len(pointers)}Q", *pointers), memory)


def compute(body: str, *inputs: Array, out: type[np.generic], threads: int = 32, shared: int = 0) -> Array:
    """Run `body`, which computes %d of %a0, %a1, ..., on arrays of one number a thread."""
    memory = ptx.Memory()
    lines, declared, pointers = [], [], []
    for index, array in enumerate(inputs):
        assert len(array) == threads, "one number a thread"
        size = array.dtype.itemsize
        declared.append(f".reg .b{max(16, size * 8)} %a{index};")
        lines.append(_address(index, size) + f"ld.global.{BITS[size]} %a{index}, [%rd11];")
        pointers.append(memory.put(array))
    size = np.dtype(out).itemsize
    declared.append(f".reg .b{max(16, size * 8)} %d;")
    result = np.zeros(threads, out)
    pointers.append(memory.put(result))
    last = _address(len(inputs), size) + f"st.global.{BITS[size]} [%rd11], %d;"
    made = kernel(
        "\n".join([*lines, body, last]),
        len(pointers),
        threads=threads,
        shared=shared,
        declared="\n".join(declared),
    )
    launch(made, memory, *pointers)
    return memory.get(pointers[-1], result)


def _address(index: int, size: int) -> str:
    return f"ld.param.b64 %rd10, [p{index}]; mad.wide.u32 %rd11, %r39, {size}, %rd10; "
