"""Which instruction sets QEMU runs: those of the tests beside, and no more."""

import subprocess
from pathlib import Path

import pytest

from tests.targets.cpu.emulated.emulator import CPUS, compile_program, qemu, qemu_version, why_not
from tokc.targets.cpu.isa import ISAS, runnable_isas

CPUID = Path(__file__).with_name("cpuid.c")
ONLY_NATIVE = [name for name in ISAS if name not in CPUS]


@pytest.mark.parametrize("name", ONLY_NATIVE)
def test_what_is_not_emulated_is_what_qemu_lacks(name: str, tmp_path: Path) -> None:
    """Skips with what is missing; fails once QEMU can run the instruction set, which then belongs in CPUS."""
    isa = ISAS[name]
    if qemu(isa) is None:
        pytest.skip(why_not(isa))
    program = compile_program(tmp_path, [str(CPUID)], "x86_64-linux-musl", "-static")
    command = [str(qemu(isa)), "-cpu", "max", str(program)]
    found = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert found.issuperset(ISAS["x86-64-v3"].features), "the probe misses what the tests beside run on"
    missing = sorted(set(isa.features) - found)
    assert missing, f"{qemu_version(isa)} runs {name}: add it to CPUS"
    here = "runs" if isa in runnable_isas() else "does not run"
    pytest.skip(f"{qemu_version(isa)} lacks {', '.join(missing)}; this CPU {here} {name} itself")
