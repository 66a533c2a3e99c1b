"""Compiles kernels to one object file, in a process of its own.

A process of its own, because LLVM aborts on an intrinsic that the instruction set lacks, and because the
compiler's memory goes back to the system when it ends.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa


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


def compile_kernels(kernels: Sequence[Kernel], isa: Isa) -> bytes:
    """Compile to one relocatable object; the same kernels give the same bytes.

    Raises: TargetRefused if the compiler dies, with the last of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tokc-codegen-") as folder:
        request, result = Path(folder, "request"), Path(folder, "kernels.o")
        request.write_bytes(pickle.dumps((tuple(kernels), isa)))
        command = [sys.executable, "-m", "tokc.targets.cpu.codegen", str(request), str(result)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            raise TargetRefused(
                f"compiling kernels for '{isa.name}' failed: {process.stderr.strip()[-800:]}",
                where=f"{len(kernels)} kernels, {kernels[0].symbol} ...",
                hint="run `tokc doctor`; a kernel may use an instruction that this target lacks",
            )
        return result.read_bytes()


def main(request: str, result: str) -> None:
    """Compile the pickled request; the body of the process."""
    import tvm

    kernels, isa = pickle.loads(Path(request).read_bytes())  # noqa: S301 - written by the parent process
    module = tvm.IRModule({kernel.symbol: kernel.build() for kernel in kernels})
    description = {"kind": "llvm", "mtriple": isa.triple, "mcpu": isa.mcpu, "mattr": list(isa.mattr)}
    library = tvm.tirx.build(module, target=tvm.target.Target(description))
    library.write_to_file(result, "o")


if __name__ == "__main__":
    main(*sys.argv[1:])
