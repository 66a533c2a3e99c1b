"""Compiles kernels to object files, in processes of their own.

Processes of their own, because LLVM aborts on an intrinsic that the instruction set lacks, because the
compiler's memory goes back to the system when they end, and because each has a core to itself.
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.processes import first_failure

REQUEST = "request"
KERNELS_A_PROCESS = 3  # a process takes as long to start as two kernels to compile


class Kernel(Protocol):
    """A specialization of one kernel family: what to compile and how to call it."""

    @property
    def symbol(self) -> str:
        """Return the C symbol, unique for the specialization."""
        ...

    @property
    def args(self) -> tuple[str, ...]:
        """Return the names of the pointer arguments, in order."""
        ...

    def build(self) -> Any:
        """Return the TIR PrimFunc."""
        ...


def compile_kernels(kernels: Sequence[Kernel], isa: Isa) -> tuple[bytes, ...]:
    """Compile each to a relocatable object; the same kernel gives the same bytes, whatever is beside it.

    Raises: TargetRefused if the compiler dies, with the last of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tokc-codegen-") as folder:
        Path(folder, REQUEST).write_bytes(pickle.dumps((tuple(kernels), isa)))
        command = [sys.executable, "-m", "tokc.targets.cpu.codegen", folder]
        count = min(len(os.sched_getaffinity(0)), -(-len(kernels) // KERNELS_A_PROCESS))
        failure = first_failure([command] * count, [os.environ] * count)
        if failure is not None:
            raise TargetRefused(
                f"compiling kernels for '{isa.name}' failed: {failure[-800:]}",
                where=f"{len(kernels)} kernels, {kernels[0].symbol} ...",
                hint="run `tokc doctor`; a kernel may use an instruction that this target lacks",
            )
        return tuple(Path(folder, f"{index}.o").read_bytes() for index in range(len(kernels)))


def main(folder: str) -> None:
    """Compile what no other process of the same request has begun; the body of a process."""
    import tvm

    kernels, isa = pickle.loads(Path(folder, REQUEST).read_bytes())  # noqa: S301 - written by the parent process
    description = {"kind": "llvm", "mtriple": isa.triple, "mcpu": isa.mcpu, "mattr": list(isa.mattr)}
    target = tvm.target.Target(description)
    for index, kernel in enumerate(kernels):
        try:
            Path(folder, f"{index}.begun").touch(exist_ok=False)
        except FileExistsError:
            continue
        library = tvm.tirx.build(tvm.IRModule({kernel.symbol: kernel.build()}), target=target)
        library.write_to_file(str(Path(folder, f"{index}.o")), "o")


if __name__ == "__main__":
    main(*sys.argv[1:])
