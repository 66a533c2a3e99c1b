"""Instruction sets that kernels are compiled for, and which of them this machine runs."""

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tokc.errors import TargetRefused
from tokc.runtime.executors.cpu import host_features

Dot = Literal["pmaddubsw", "vpdpbusd", "sdot", "usdot"]


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    `lanes` counts f32 in a vector; `dot` is the instruction that sums products of bytes; `features` are the
    flags that /proc/cpuinfo must show; `accumulators` is how many rows a tile may hold in registers; `amx`
    says that tiles of 16 rows go through the matrix unit.
    """

    name: str
    triple: str
    mcpu: str
    mattr: tuple[str, ...]
    lanes: int
    dot: Dot
    features: tuple[str, ...]
    accumulators: int
    amx: bool = False


_X86 = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"
_V3 = ("avx2", "bmi2", "f16c", "fma")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

_AMX = (*_V4, "avx512_vnni", "amx_tile", "amx_int8")

ISAS: Mapping[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa("x86-64-v3", _X86, "haswell", (), 8, "pmaddubsw", _V3, 4),
        Isa("avx-vnni", _X86, "haswell", ("+avxvnni",), 8, "vpdpbusd", (*_V3, "avx_vnni"), 4),
        Isa("x86-64-v4", _X86, "skylake-avx512", (), 8, "pmaddubsw", _V4, 8),
        Isa("avx512-vnni", _X86, "cascadelake", (), 16, "vpdpbusd", (*_V4, "avx512_vnni"), 8),
        Isa("amx-int8", _X86, "cascadelake", ("+amx-tile", "+amx-int8"), 16, "vpdpbusd", _AMX, 8, amx=True),
        Isa("neoverse-n1", _ARM, "neoverse-n1", (), 4, "sdot", ("asimddp", "asimdhp"), 8),
        Isa("neoverse-v1", _ARM, "neoverse-v1", (), 4, "usdot", ("asimddp", "asimdhp", "i8mm"), 8),
    )
}


_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


def _may_use_tiles() -> bool:
    """Ask the kernel for AMX's registers, for this process; it grants them or not."""
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def runnable_isas() -> tuple[Isa, ...]:
    """Return what this machine runs, the best last."""
    features = host_features()
    here = [
        isa
        for isa in ISAS.values()
        if isa.triple.split("-")[0] == platform.machine()
        and features.issuperset(isa.features)
        and (not isa.amx or _may_use_tiles())
    ]
    return tuple(here)


def host_isa() -> Isa:
    """Return the best instruction set of this machine.

    Raises: TargetRefused if it has none of them.
    """
    here = runnable_isas()
    if not here:
        raise TargetRefused(
            f"this CPU ({platform.machine()}) runs none of {', '.join(ISAS)}",
            hint="name the machine that the artifact is for: --target cpu:DEVICE",
        )
    return here[-1]
