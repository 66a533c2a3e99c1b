"""Builds llama-cpp-python for this CPU in an environment of its own.

llama.cpp's own choice of instructions (GGML_NATIVE) is taken unless the CPU has AMX: version 0.3.36 crashes
there in its AMX path (ldtilecfg in ggml_backend_amx_mul_mat). Then every other instruction set is named; its
kernels for AVX512-VNNI, on weights repacked at load, are the fastest that it ran.
"""

import os
import subprocess
import sys
from pathlib import Path

VERSION = "0.3.36"
FOLDER = Path(".venv-bench/llamacpp")
# A CMake option, and the flag of /proc/cpuinfo that it needs.
OPTIONS = {
    "GGML_SSE42": "sse4_2",
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
    "GGML_BMI2": "bmi2",
    "GGML_AVX_VNNI": "avx_vnni",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this CPU, in the kernel's spelling."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(flags.split())
    return frozenset()


def cmake_options() -> str:
    """Return the CMake options that make llama.cpp fastest on this CPU."""
    flags = cpu_flags()
    if "amx_int8" not in flags:
        return "-DGGML_NATIVE=ON"
    chosen = [f"-D{option}={'ON' if flag in flags else 'OFF'}" for option, flag in OPTIONS.items()]
    return " ".join(["-DGGML_NATIVE=OFF", *chosen])


def interpreter() -> str:
    """Return the environment's Python, built if it is not there (about 4 minutes)."""
    python, stamp, options = FOLDER / "bin" / "python", FOLDER / "options.txt", cmake_options()
    built = f"{VERSION} {options}"
    if not stamp.exists() or stamp.read_text() != built:
        print(f"build llama-cpp-python {VERSION} ({options}) in {FOLDER}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        # A cached wheel may be of other options.
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--no-binary",
            "llama-cpp-python",
        ]
        environment = {**os.environ, "CMAKE_ARGS": options}
        subprocess.run([*install, f"llama-cpp-python=={VERSION}"], check=True, env=environment)
        stamp.write_text(built)
    return str(python)
