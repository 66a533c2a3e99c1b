"""The CPU target: its devices, its default passes, and the way from a program to code."""

from collections.abc import Mapping
from dataclasses import replace

from tokc.ir.program import Program
from tokc.runtime.manifest import TargetInfo
from tokc.targets.base import Device, Limits, Lowered, Target, Verified, pass_list
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.emit import emit
from tokc.targets.cpu.isa import ISAS, host_isa, runnable_isas
from tokc.targets.cpu.kernels.peak import peaks
from tokc.targets.cpu.link import link
from tokc.targets.memory import plan_memory

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
    """Lower a ragged program: emit launches, place buffers, compile and link kernels, pack weights."""
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
    probes = peaks(isa)
    kernels = (*kernels, *probes)
    plan = replace(
        plan_memory(plan),
        kernels=tuple(kernel.symbol for kernel in kernels),
        probes=tuple(probe.launch for probe in probes),
    )
    code = compile_kernels(kernels, isa)
    info = TargetInfo(
        kind="cpu",
        device=isa.name,
        arch=isa.triple.split("-")[0],
        features=tuple(sorted(isa.features)),
        library=LIBRARY,
    )
    files = {**plan.files(), f"kernels/{LIBRARY}": link(kernels, code, isa)}
    return Lowered(plan.limits, weights, files, info)


TARGET = Target(
    kind="cpu",
    summary="x86-64 and aarch64 processors; kernels by TVM, no TVM at run time",
    devices=devices,
    host_device=lambda: host_isa().name,
    pipeline=pass_list,
    lower=lower,
    drafts=True,
)
