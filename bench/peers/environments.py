"""Makes each peer's environment, pinned, under .venv-bench: `python -m bench.peers.environments NAME...`.

llama.cpp is built here, for this CPU. Its own choice of instructions (GGML_NATIVE) is taken unless the CPU
has AMX: version 0.3.36 crashes there in its AMX path (ldtilecfg in ggml_backend_amx_mul_mat). Then every
other instruction set is named; its kernels for AVX512-VNNI, on weights repacked at load, are its fastest.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokc.runtime.executors.cpu import host_features

FOLDER = Path(".venv-bench")
NUMPY = "numpy==2.4.6"
TORCH, TRANSFORMERS = "torch==2.13.0", "transformers==5.24.0"
OPENVINO, ONNXRUNTIME, CTRANSLATE2 = (
    "openvino-genai==2026.4.1.0",
    "onnxruntime-genai==0.18.0",
    "ctranslate2==4.8.5",
)
LLAMACPP = "llama-cpp-python==0.3.36"
# What llama-cpp-python's extra `server` asks for.
LLAMACPP_SERVER = (
    "uvicorn==0.54.0",
    "fastapi==0.165.0",
    "pydantic-settings==2.16.3",
    "sse-starlette==3.7.0",
    "starlette-context==0.5.1",
    "PyYAML==6.0.4",
)
TORCHAO, LLMCOMPRESSOR, GPTQMODEL = "torchao==0.18.0", "llmcompressor==0.14.0.1", "gptqmodel==7.6.0"
# A CMake option of llama.cpp, and the flag of /proc/cpuinfo that it needs.
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
V3_FLAGS = frozenset({"sse4_2", "avx", "avx2", "fma", "f16c", "bmi2"})


def only(flags: frozenset[str]) -> str:
    """Return the CMake options that build llama.cpp for `flags` and nothing else."""
    chosen = [f"-D{option}={'ON' if flag in flags else 'OFF'}" for option, flag in OPTIONS.items()]
    return " ".join(["-DGGML_NATIVE=OFF", *chosen])


def native() -> str:
    """Return the CMake options that make llama.cpp fastest on this CPU."""
    flags = host_features()
    return only(flags) if "amx_int8" in flags else "-DGGML_NATIVE=ON"


@dataclass(frozen=True)
class Environment:
    """What pip installs, then removes; with CMake options `built`, the first package is built here."""

    packages: tuple[str, ...]
    built: Callable[[], str] | None = None
    removed: tuple[str, ...] = ()


ENVIRONMENTS = {
    "llamacpp": Environment((LLAMACPP, NUMPY), native),
    "llamacpp-server": Environment((LLAMACPP, NUMPY, *LLAMACPP_SERVER), native),
    "llamacpp-x86-64-v3": Environment((LLAMACPP, NUMPY), lambda: only(V3_FLAGS)),
    "openvino": Environment((OPENVINO, NUMPY)),
    "onnxruntime": Environment((ONNXRUNTIME, "onnxruntime==1.32.0", NUMPY)),
    "ctranslate2": Environment((CTRANSLATE2, NUMPY)),
    "torch": Environment((TORCH, TRANSFORMERS, NUMPY)),
    # Loads GGUF as transformers 5 does, and writes what ONNX Runtime GenAI and CTranslate2 read.
    "export": Environment(
        (
            TORCH,
            TRANSFORMERS,
            ONNXRUNTIME,
            CTRANSLATE2,
            "gguf==0.19.0",
            "onnx-ir==1.1.0",
            "accelerate==1.15.0",
            NUMPY,
        )
    ),
    # Libraries that quantize; each wants a transformers of its own.
    "torchao": Environment((TORCH, TORCHAO, TRANSFORMERS, NUMPY)),
    "llmcompressor": Environment((TORCH, LLMCOMPRESSOR, NUMPY)),
    "gptqmodel": Environment((TORCH, GPTQMODEL)),
    # optimum-intel wants an older transformers, and breaks on a torchvision that is not of torch's own build.
    "export-openvino": Environment(
        (TORCH, "optimum-intel==2.2.0", "nncf==3.4.0", "openvino-tokenizers==2026.4.1.0"),
        removed=("torchvision",),
    ),
}


def interpreter(name: str) -> str:
    """Return the Python of the environment `name`, made if it is not there (llama.cpp takes about 4 minutes).

    Raises: CalledProcessError if pip fails.
    """
    environment, folder = ENVIRONMENTS[name], FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "stamp.txt"
    options = environment.built() if environment.built else ""
    wanted = " ".join([*environment.packages, options])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"make {folder}: {wanted}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if environment.built:
            # A cached wheel may be of other options.
            install += ["--no-cache-dir", "--no-binary", environment.packages[0].partition("==")[0]]
        subprocess.run(
            [*install, *environment.packages], check=True, env={**os.environ, "CMAKE_ARGS": options}
        )
        if environment.removed:
            subprocess.run(
                [python, "-m", "pip", "uninstall", "--quiet", "--yes", *environment.removed], check=True
            )
        stamp.write_text(wanted)
    return str(python)


def versions(names: Iterable[str]) -> dict[str, list[str]]:
    """Return what is installed in each of the environments that are there."""
    found = {}
    for name in names:
        python = FOLDER / name / "bin" / "python"
        if python.exists():
            command = [python, "-m", "pip", "freeze", "--disable-pip-version-check"]
            found[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found


@cache
def tokc_interpreter() -> str:
    """Return the Python of a fresh environment with this checkout's wheel and what its base needs."""
    folder = FOLDER / "tokc"
    python, quiet = folder / "bin" / "python", ["--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as aside:
        # setuptools would take along what an earlier build left in the checkout's own build folder.
        source = Path(aside) / "source"
        ignored = shutil.ignore_patterns(".*", "out", "build", "dist", "*.egg-info", "__pycache__")
        shutil.copytree(".", source, symlinks=True, ignore=ignored)
        wheel_command = [sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "--no-build-isolation"]
        subprocess.run([*wheel_command, "--wheel-dir", aside, source], check=True)
        (wheel,) = Path(aside).glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", *quiet, wheel, NUMPY], check=True)
    return str(python)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(interpreter(each))
