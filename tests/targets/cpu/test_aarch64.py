"""Kernels for ARM servers: cross-compiled here, and run under qemu-user where it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.linear_cases import Case, cases
from tokc.targets.cpu.codegen import Kernel, compile_kernels
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.link import link, zig_environment

Array = npt.NDArray[Any]
EM_AARCH64 = 183
QEMU = shutil.which("qemu-aarch64")
CPUS = {"neoverse-n1": "neoverse-n1", "neoverse-v1": "max"}
ARM = [name for name, isa in ISAS.items() if isa.triple.startswith("aarch64")]

HARNESS = """
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
static void *load(const char *name) {{
    FILE *f = fopen(name, "rb"); fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f);
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);
    if (fread(p, 1, n, f) != (size_t)n) exit(2);
    fclose(f);
    return p;
}}
{declarations}
int main(void) {{ {calls} return 0; }}
"""
CALL = """{{ void *a[] = {{{loads}}}; {symbol}({operands}, {rows}, 0, 1);
 FILE *f = fopen("{out}", "wb"); fwrite(a[{last}], 1, {size}, f); fclose(f); }}"""


@pytest.mark.parametrize("name", ARM)
def test_a_library_for_arm_is_linked_without_an_arm_machine(name: str) -> None:
    isa = ISAS[name]
    kernels = [case.kernel for case in cases(isa, 1)]
    library = link(kernels, compile_kernels(kernels, isa), isa)
    assert library[:4] == b"\x7fELF"
    assert int.from_bytes(library[18:20], "little") == EM_AARCH64


@pytest.mark.skipif(QEMU is None, reason="qemu-aarch64 is not installed (Debian package qemu-user)")
@pytest.mark.parametrize("name", ARM)
def test_arm_kernels_equal_numpy_under_qemu(name: str, tmp_path: Path) -> None:
    isa = ISAS[name]
    chosen = list(cases(isa, 9))
    run_under_qemu(chosen, isa, tmp_path)
    for index, case in enumerate(chosen):
        y = np.fromfile(tmp_path / f"{index}.out", np.float32).reshape(9, case.width)
        error = np.abs(y[:, : case.expected.shape[1]] - case.expected).max() / np.abs(case.expected).max()
        assert error < 1e-6, case.kernel.symbol


def run_under_qemu(chosen: list[Case], isa: Isa, folder: Path) -> None:
    """Link the kernels with a main that calls each case once, and run it."""
    kernels: list[Kernel] = [case.kernel for case in chosen]
    declared, calls = [], []
    for index, case in enumerate(chosen):
        kernel, rows = case.kernel, len(case.expected)
        inputs = {**case.fixed, **case.rows, "y": np.zeros((rows, case.width), np.float32)}
        for name in kernel.args:
            np.ascontiguousarray(inputs[name]).tofile(folder / f"{index}.{name}")
        loads = ", ".join(f'load("{index}.{name}")' for name in kernel.args)
        operands = ", ".join(f"a[{i}]" for i in range(len(kernel.args)))
        size, last = inputs["y"].nbytes, kernel.args.index("y")
        call = CALL.format(
            loads=loads,
            symbol=kernel.symbol,
            operands=operands,
            rows=rows,
            out=f"{index}.out",
            last=last,
            size=size,
        )
        calls.append(call)
        declared.append(f"int32_t {kernel.symbol}({'void *, ' * len(kernel.args)}int32_t, int32_t, int32_t);")
    (folder / "kernels.o").write_bytes(compile_kernels(kernels, isa))
    (folder / "main.c").write_text(HARNESS.format(declarations="\n".join(declared), calls="\n".join(calls)))
    zig = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        "aarch64-linux-musl",
        "-static",
        "-fno-sanitize=all",
    ]
    command = [*zig, "-o", "run", "main.c", "kernels.o"]
    subprocess.run(command, cwd=folder, check=True, env=zig_environment())
    subprocess.run([str(QEMU), "-cpu", CPUS[isa.name], "./run"], cwd=folder, check=True, timeout=120)
