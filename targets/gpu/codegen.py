"""Compiles GPU kernels ahead of time, in processes of their own; no GPU is asked for.

Processes of their own, because Triton decides at import whether its functions are compiled or interpreted,
because a kernel that its compiler cannot lower may end the process, and to use every core.
"""

import os
import pickle
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.device import Architecture
from tokc.targets.gpu.kernel import Kernel
from tokc.targets.gpu.resources import Resources, amd_resources, nvidia_resources
from tokc.targets.processes import first_failure

POINTERS: Mapping[str, str] = {
    "f32": "*fp32",
    "f16": "*fp16",
    "i32": "*i32",
    "i8": "*i8",
    "u8": "*u8",
}
ALIGNMENT = 16


@dataclass(frozen=True)
class Compiled:
    """One kernel's code: `files` by suffix (cubin and ptx, or hsaco), `entry` its function in them.

    `scratch_pointers` follow the kernel's own arguments; they are null, no kernel here uses them.
    """

    symbol: str
    entry: str
    warps: int
    threads: int
    parameters: tuple[str, ...]
    scratch_pointers: int
    files: Mapping[str, bytes]
    resources: Resources


def compile_kernels(kernels: Sequence[Kernel], arch: Architecture) -> tuple[Compiled, ...]:
    """Compile each kernel; the same kernels give the same bytes.

    Raises: TargetRefused if one does not compile, with the last of what the compiler said.
    """
    workers = max(1, min(len(os.sched_getaffinity(0)), len(kernels)))
    with tempfile.TemporaryDirectory(prefix="tokc-codegen-") as folder:
        shares = [Path(folder, str(worker)) for worker in range(workers)]
        for worker, share in enumerate(shares):
            share.mkdir()
            (share / "request").write_bytes(pickle.dumps((tuple(kernels[worker::workers]), arch)))
        commands = [[sys.executable, "-m", "tokc.targets.gpu.codegen", str(share)] for share in shares]
        failure = first_failure(commands, [_environment(share) for share in shares])
        if failure is not None:
            raise TargetRefused(
                f"compiling kernels for '{arch.name}' failed: {failure[-800:]}",
                hint="run `tokc doctor`; `tokc targets` lists what each architecture supports",
            )
        made: list[Compiled] = []
        for share in shares:
            made += pickle.loads((share / "result").read_bytes())  # noqa: S301 - written by our own processes
    found = {kernel.symbol: kernel for kernel in made}
    return tuple(found[kernel.symbol] for kernel in kernels)


def _environment(share: Path) -> dict[str, str]:
    """Return the environment of a process that compiles a share, in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # Line tables would put this machine's paths into the code.
    always = {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DISABLE_LINE_INFO": "1"}
    return environment | always | {"TRITON_CACHE_DIR": str(share / "cache")}


def compile_one(kernel: Kernel, arch: Architecture) -> Compiled:
    """Compile one kernel in this process, in which Triton must not be set to interpret.

    Raises: whatever Triton raises.
    """
    import triton

    made = triton.compile(source_of(kernel, arch), target=target_of(arch), options=options_of(kernel, arch))
    return _collect(kernel, arch, made)


def source_of(kernel: Kernel, arch: Architecture) -> Any:
    """Return what Triton compiles: the kernel's function with its pointers' types and its constants.

    Raises: TargetRefused if it takes fp8 and the architecture has none.
    """
    from triton.compiler import ASTSource

    function = kernel.function()
    pointers = {name: _pointer(dtype, arch) for name, dtype in kernel.args}
    order = [name for name in function.arg_names if name in pointers]
    assert order == [name for name, _ in kernel.args], f"{kernel.symbol} takes {order}"
    return ASTSource(
        fn=function,
        signature={name: pointers.get(name, "constexpr") for name in function.arg_names},
        constexprs=dict(kernel.constants),
        attrs={
            (at,): [["tt.divisibility", ALIGNMENT]]
            for at, name in enumerate(function.arg_names)
            if name in pointers
        },
    )


def target_of(arch: Architecture) -> Any:
    """Return an architecture as Triton names it."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget(arch.backend, arch.triton, arch.warp)


def options_of(kernel: Kernel, arch: Architecture) -> dict[str, int]:
    """Return Triton's options."""
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    if arch.backend == "hip":
        # Narrow and wide tiles must use the same matrix instruction: a token's bits depend on it.
        options["matrix_instr_nonkdim"] = 16
    return options


def _collect(kernel: Kernel, arch: Architecture, made: Any) -> Compiled:
    if arch.backend == "cuda":
        files = {"cubin": made.asm["cubin"], "ptx": made.asm["ptx"].encode()}
        resources = nvidia_resources(made.asm["cubin"], made.asm["ptx"], made.metadata.shared, arch)
    else:
        files = {"hsaco": made.asm["hsaco"]}
        resources = amd_resources(made.asm["amdgcn"], made.metadata.shared, kernel.warps, arch)
    for name in ("global_scratch_size", "profile_scratch_size"):
        assert not getattr(made.metadata, name, 0), f"{kernel.symbol} wants scratch memory"
    return Compiled(
        symbol=kernel.symbol,
        entry=made.metadata.name,
        warps=kernel.warps,
        threads=kernel.warps * arch.warp,
        parameters=tuple(dtype for _, dtype in kernel.args),
        scratch_pointers=2,
        files=files,
        resources=resources.with_occupancy(kernel.warps, arch),
    )


def _pointer(dtype: str, arch: Architecture) -> str:
    if dtype != "fp8":
        return POINTERS[dtype]
    if arch.fp8 is None:
        raise TargetRefused(
            f"'{arch.name}' has no matrix unit for fp8", hint="int8 weights are the nearest that it runs"
        )
    return f"*{arch.fp8}"


def main(folder: str) -> None:
    """Compile the pickled request; the body of the process."""
    share = Path(folder)
    kernels, arch = pickle.loads((share / "request").read_bytes())  # noqa: S301 - written by the parent process
    (share / "result").write_bytes(pickle.dumps([compile_one(kernel, arch) for kernel in kernels]))


if __name__ == "__main__":
    from tokc.targets.gpu import codegen

    codegen.main(sys.argv[1])  # by its own name, so that what it pickles is found by the parent
