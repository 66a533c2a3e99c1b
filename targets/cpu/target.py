"""The CPU target: its devices, its default passes, and the way from a program to code."""

from collections.abc import Mapping
from dataclasses import asdict, replace

from tokc.artifact.writer import Tensor
from tokc.ir.program import Program
from tokc.runtime.manifest import DRAFT, TargetInfo
from tokc.targets.base import Device, Limits, Lowered, Precision, Target, Verified, pass_list
from tokc.targets.cpu.draft import emit_draft
from tokc.targets.cpu.emit import emit
from tokc.targets.cpu.isa import ISAS, host_isa, runnable_isas
from tokc.targets.cpu.kernel_cache import KernelCache
from tokc.targets.cpu.kernels.peak import peaks
from tokc.targets.cpu.kernels.quant_linear import DEFAULT_SCHEDULE
from tokc.targets.cpu.link import link
from tokc.targets.cpu.schedules import kept_schedule, scheduled
from tokc.targets.memory import plan_memory
from tokc.targets.plan import Plan

LIBRARY = "step.so"
# How far code is verified that no machine of ours runs; the rest is run.
VERIFIED: Mapping[str, Verified] = {
    "amx-int8": "compiled",
    "neoverse-n1": "emulated",
    "neoverse-v1": "emulated",
}


def devices() -> tuple[Device, ...]:
    """Return every instruction set that the target compiles for."""
    here = {isa.name for isa in runnable_isas()}
    return tuple(
        Device(isa.name, f"{isa.mcpu}, {isa.dot}", isa.name in here, verified=VERIFIED.get(isa.name, "run"))
        for isa in ISAS.values()
    )


def lower(program: Program, device: str, limits: Limits) -> Lowered:
    """Lower a ragged program: emit launches, place buffers, compile and link kernels, pack weights.

    The kernels' schedule is what `tokc tune-kernels` found for `device` on this machine, if it ran.
    """
    isa = ISAS[device]
    page = program.kv.page if program.kv else 1
    bounds = {
        "tokens": limits.tokens,
        "rows": limits.rows,
        "seqs": limits.seqs,
        "blocks": -(-limits.context // page),
        "context": limits.context,
    }
    plan, kernels, weights = emit(program, isa, bounds)
    drafting: Plan | None = None
    own: tuple[Tensor, ...] = ()
    if program.draft is not None:
        drafting, more, own = emit_draft(program.draft, isa, bounds, weights)
        known = {kernel.symbol for kernel in kernels}
        kernels = (*kernels, *(kernel for kernel in more if kernel.symbol not in known))
    probes, schedule = peaks(isa), kept_schedule(device)
    kernels = (*(scheduled(kernel, schedule) for kernel in kernels), *probes)
    symbols = tuple(kernel.symbol for kernel in kernels)
    plan = replace(plan_memory(plan), kernels=symbols, probes=tuple(probe.launch for probe in probes))
    objects = KernelCache().compile(kernels, isa)
    info = TargetInfo(
        kind="cpu",
        device=isa.name,
        arch=isa.triple.split("-")[0],
        features=tuple(sorted(isa.features)),
        library=LIBRARY,
        schedule={} if schedule == DEFAULT_SCHEDULE else asdict(schedule),
    )
    files = {**plan.files(), f"kernels/{LIBRARY}": link(kernels, objects, isa)}
    if drafting is not None:
        placed = replace(plan_memory(drafting), kernels=symbols).files()
        files |= {f"{DRAFT}/{name}": content for name, content in placed.items()}
    return Lowered(plan.limits, weights, files, info, own)


def pipeline(precision: Precision) -> str:
    """Return the default passes, in running order; weights that are rounded get scales of 8 bits."""
    return pass_list(precision, grid_options="scale_bits=8")


TARGET = Target(
    kind="cpu",
    summary="x86-64 and aarch64 processors; kernels by TVM, no TVM at run time",
    devices=devices,
    host_device=lambda: host_isa().name,
    pipeline=pipeline,
    lower=lower,
    drafts=True,
)
