"""The CUDA and ROCm targets: their devices, their default passes, and the way from a program to code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from tokc.artifact.writer import Tensor, canonical_json
from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.runtime.manifest import TargetInfo
from tokc.targets.base import Device, Limits, Lowered, Precision, Target, Verified, pass_list
from tokc.targets.gpu.codegen import Compiled, compile_kernels
from tokc.targets.gpu.device import ARCHITECTURES, Architecture, Backend, architectures
from tokc.targets.gpu.emit import emit
from tokc.targets.gpu.emit_ranks import emit_ranks
from tokc.targets.gpu.host import cuda_architectures, hip_architectures
from tokc.targets.gpu.sharding import MOST_RANKS
from tokc.targets.gpu.verification import EMULATED, verification
from tokc.targets.memory import plan_memory

SCHEMA_VERSION = 1
LIBRARY = "kernels.json"
WEIGHTS = ("int4", "int8", "f16")
CACHES = ("f16", "int8")


@dataclass(frozen=True)
class Vendor:
    """What differs between the two targets."""

    kind: str
    backend: Backend
    summary: str
    present: Callable[[], tuple[str, ...]]
    together: int = 1

    def devices(self) -> tuple[Device, ...]:
        """Return every architecture that the target compiles for."""
        here = self.present()
        return tuple(
            Device(
                arch.name,
                arch.summary,
                arch.name in here,
                WEIGHTS,
                CACHES,
                _verified(arch),
                self.together,
                here.count(arch.name),
            )
            for arch in architectures(self.backend)
        )

    def host_device(self) -> str | None:
        """Return the architecture of this machine's first device that the target compiles for."""
        return next((name for name in self.present() if name in ARCHITECTURES), None)

    def pipeline(self, precision: Precision) -> str:
        """Return the default passes, in running order."""
        return pass_list(precision, grid_options="act_group=0")

    def lower(self, program: Program, device: str, limits: Limits) -> Lowered:
        """Lower a ragged program: emit launches, place buffers, compile kernels, pack weights.

        A device of several, `sm_90-2`, cuts the program over them: all run one plan, each has own weights.
        Raises: TargetRefused if Triton is not installed, for what no GPU kernel runs, or what cannot be cut.
        """
        if find_spec("triton") is None:
            raise TargetRefused(
                f"target '{self.kind}' needs Triton, which is not installed",
                hint="pip install 'tokc-compiler[gpu]'",
            )
        name, _, count = device.partition("-")
        arch, ranks = ARCHITECTURES[name], int(count or 1)
        plan, kernels, tensors = emit(program, name, limits)
        own: tuple[tuple[Tensor, ...], ...] = ()
        if ranks > 1:
            plan, kernels, tensors, own = emit_ranks(program, name, limits, ranks)
        plan = plan_memory(plan)
        compiled = compile_kernels(kernels, arch)
        files = {
            **plan.files(),
            f"kernels/{LIBRARY}": canonical_json(launch_abi(compiled, arch, ranks)),
            **{path: code for one in compiled for path, code in code_files(one).items()},
        }
        info = TargetInfo(kind=self.kind, device=device, arch=name, features=(), library=LIBRARY)
        return Lowered(plan.limits, tensors, files, info, rank_tensors=own)

    def target(self) -> Target:
        """Return the row of the table of targets."""
        return Target(
            kind=self.kind,
            summary=self.summary,
            devices=self.devices,
            host_device=self.host_device,
            pipeline=self.pipeline,
            lower=self.lower,
        )


def launch_abi(compiled: Sequence[Compiled], arch: Architecture, ranks: int = 1) -> dict[str, object]:
    """Return what the runtime needs to launch each kernel, in the plan's order, and what the code takes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "backend": arch.backend,
        "arch": arch.name,
        **({"ranks": ranks} if ranks > 1 else {}),
        "verification": dict(verification(compiled, arch, ranks)),
        "kernels": [
            {
                "symbol": one.symbol,
                "entry": one.entry,
                **{("ptx" if path.endswith(".ptx") else "file"): path for path in code_files(one)},
                "warps": one.warps,
                "threads": one.threads,
                "shared_bytes": one.resources.shared_bytes,
                "parameters": list(one.parameters),
                "scratch_pointers": one.scratch_pointers,
                "cluster": 1,
                "resources": one.resources.to_json(),
            }
            for one in compiled
        ],
    }


def code_files(one: Compiled) -> dict[str, bytes]:
    """Return a kernel's files by path within the artifact."""
    return {f"kernels/{one.symbol}.{suffix}": code for suffix, code in one.files.items()}


def _verified(arch: Architecture) -> Verified:
    return "emulated" if arch.name in EMULATED else "interpreted"


CUDA = Vendor(
    "cuda",
    "cuda",
    "NVIDIA GPUs; kernels by Triton, no Triton and no torch at run time",
    cuda_architectures,
    MOST_RANKS,
).target()
ROCM = Vendor(
    "rocm", "hip", "AMD GPUs; kernels by Triton, no Triton and no torch at run time", hip_architectures
).target()
