"""The GPU architectures that the targets compile for, and what a multiprocessor of each holds.

Sources: CUDA C++ Programming Guide 13, "Technical Specifications per Compute Capability"; AMD Instinct MI300
and MI200 instruction set architecture manuals; AMD RDNA3 instruction set architecture manual.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Backend = Literal["cuda", "hip"]
KIB = 1024
MMA = ("HMMA", "IMMA")
WGMMA = ("HGMMA", "QGMMA", "IGMMA")
TCGEN05 = ("UTCHMMA", "UTCQMMA", "UTCIMMA")
E4M3 = "fp8e4nv"


@dataclass(frozen=True)
class Architecture:
    """One architecture: `triton` is how Triton spells it; memory in bytes, registers of 32 bits.

    `matrix` are the instructions, as the disassembler spells them, that multiply matrices. `fp8` is
    Triton's name of the e4m3 form that these take, None where there is none.
    """

    name: str
    backend: Backend
    triton: int | str
    warp: int
    shared_bytes: int
    shared_per_block: int
    registers: int
    warps: int
    blocks: int
    matrix: tuple[str, ...]
    fp8: str | None
    summary: str


def _nvidia(
    name: str, shared_kib: int, block_kib: int, warps: int, blocks: int, **rest: object
) -> Architecture:
    return Architecture(
        name=name,
        backend="cuda",
        triton=int(name.removeprefix("sm_")),
        warp=32,
        shared_bytes=shared_kib * KIB,
        shared_per_block=block_kib * KIB,
        registers=65536,
        warps=warps,
        blocks=blocks,
        **rest,  # type: ignore[arg-type]
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    arch.name: arch
    for arch in (
        _nvidia("sm_80", 164, 163, 64, 32, matrix=MMA, fp8=None, summary="A100"),
        _nvidia("sm_86", 100, 99, 48, 16, matrix=MMA, fp8=None, summary="A10, RTX 30"),
        _nvidia("sm_89", 100, 99, 48, 24, matrix=(*MMA, "QMMA"), fp8=E4M3, summary="L4, L40S, RTX 40"),
        _nvidia("sm_90", 228, 227, 64, 32, matrix=(*WGMMA, *MMA), fp8=E4M3, summary="H100, H200"),
        _nvidia("sm_100", 228, 227, 64, 32, matrix=(*TCGEN05, *MMA), fp8=E4M3, summary="B200"),
        _nvidia("sm_120", 100, 99, 48, 24, matrix=(*MMA, "QMMA"), fp8=E4M3, summary="RTX 50, RTX PRO"),
        Architecture("gfx90a", "hip", "gfx90a", 64, 64 * KIB, 64 * KIB, 65536 * 2, 32, 32,
                     ("v_mfma",), None, "MI210, MI250"),
        Architecture("gfx942", "hip", "gfx942", 64, 64 * KIB, 64 * KIB, 65536 * 2, 32, 32,
                     ("v_mfma",), "fp8e4b8", "MI300X, MI325X"),
        Architecture("gfx1100", "hip", "gfx1100", 32, 128 * KIB, 64 * KIB, 65536 * 3, 64, 32,
                     ("v_wmma",), None, "RX 7900"),
    )
}  # fmt: skip


def architectures(backend: Backend) -> tuple[Architecture, ...]:
    """Return those of one vendor, in the order of the table."""
    return tuple(arch for arch in ARCHITECTURES.values() if arch.backend == backend)
