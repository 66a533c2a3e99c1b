"""Links kernels and the driver into one shared library that needs nothing but libc.

The linker and C compiler are Zig's, from PyPI: they cross-compile to every target and no system compiler is
asked of the user.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tokc.errors import TargetRefused
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.isa import Isa
from tokc.user_cache import cache_folder

DRIVER = Path(__file__).parent / "driver.c"
ZIG_TARGETS = {"x86_64": "x86_64-linux-gnu.2.28", "aarch64": "aarch64-linux-gnu.2.28"}


def kernel_table(kernels: Sequence[Kernel]) -> str:
    """Return the C source of the table through which the driver calls each kernel."""
    lines = ["#include <stdint.h>", ""]
    for kernel in kernels:
        pointers = ", ".join(["void *"] * len(kernel.args))
        lines.append(f"extern int32_t {kernel.symbol}({pointers}, int32_t, int32_t, int32_t);")
    lines.append("#define ARGUMENTS void *const *p, int32_t rows, int32_t tid, int32_t threads")
    for index, kernel in enumerate(kernels):
        operands = ", ".join(f"p[{i}]" for i in range(len(kernel.args)))
        lines.append(
            f"static void call_{index}(ARGUMENTS) {{ {kernel.symbol}({operands}, rows, tid, threads); }}"
        )
    calls = ", ".join(f"call_{index}" for index in range(len(kernels)))
    lines += [
        f"void (*const tokc_kernels[])(ARGUMENTS) = {{{calls}}};",
        f"const int32_t tokc_kernel_count = {len(kernels)};",
        "",
    ]
    return "\n".join(lines)


def write_objects(folder: Path, objects: Sequence[bytes]) -> list[str]:
    """Write the kernels' objects into a folder and return their names."""
    for index, code in enumerate(objects):
        Path(folder, f"{index}.o").write_bytes(code)
    return [f"{index}.o" for index in range(len(objects))]


def link(kernels: Sequence[Kernel], objects: Sequence[bytes], isa: Isa) -> bytes:
    """Return the shared library of the kernels' `objects` and the driver; same inputs, same bytes.

    Raises: TargetRefused if the linker fails, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="tokc-link-") as folder:
        Path(folder, "table.c").write_text(kernel_table(kernels))
        Path(folder, "driver.c").write_bytes(DRIVER.read_bytes())
        target = ZIG_TARGETS[isa.triple.split("-")[0]]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared", "-fPIC", "-O3", "-s"]
        command += ["-fno-sanitize=all", "-pthread", "-Wl,-soname,step.so", "-o", "step.so"]
        command += ["driver.c", "table.c", *write_objects(Path(folder), objects)]
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env=zig_environment()
        )
        if process.returncode != 0:
            raise TargetRefused(
                f"linking the kernels for '{isa.name}' failed: {process.stderr.strip()[-800:]}",
                hint="is the disk full, or the `build` extra (ziglang) damaged? `tokc doctor` checks both",
            )
        return Path(folder, "step.so").read_bytes()


def zig_environment() -> dict[str, str]:
    """Return the environment with Zig's cache where a user's caches belong."""
    cache = str(cache_folder() / "zig")
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
