"""NCCL's calls, made by the real bindings to a library that takes the place of NCCL's."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import repository

SESSION = """
from tokc.errors import TokcError
from tokc.runtime.drivers.nccl import connected
try:
    first, second = connected(2)
    print(first.rank, first.ranks, second.rank, second.ranks)
    first.all_gather(4096, 8192, 256, 77)
    second.exchange(4096, 8192, 256, 77)
    first.close()
    first.close()
    second.abort()
    second.close()
except TokcError as error:
    print(type(error).__name__, error)
"""
needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("nccl") is None, reason="the package nccl4py is not installed"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a libnccl.so.2."""
    folder = tmp_path_factory.mktemp("nccl")
    source = Path(__file__).with_name("host_nccl.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    made = folder / "libnccl.so.2"
    subprocess.run([*command, str(source), "-o", str(made)], check=True, capture_output=True, timeout=120)
    return folder


def session(folder: Path, log: Path, script: str = SESSION, **knobs: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False, cwd=repository(), timeout=120,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "HOST_NCCL_LOG": str(log), **knobs},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, log.read_text().splitlines() if log.exists() else []


@needs_bindings
def test_the_library_is_given_addresses_bytes_peers_and_the_stream(library: Path, tmp_path: Path) -> None:
    said, log = session(library, tmp_path / "log")
    assert said == "0 2 1 2\n"
    assert log == [
        *("init 2", "device 0", "device 1"),
        "all_gather 4096 8192 256 0 256 77",
        "group start",
        *("send 4096 256 0 0 257 77", "recv 8192 256 0 0 257 77"),
        *("send 4352 256 0 1 257 77", "recv 8448 256 0 1 257 77"),
        "group end",
        *("destroy 256", "abort 257"),
    ]


@needs_bindings
@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("init", "ArtifactRefused 2 CUDA devices cannot be connected by NCCL"),
        ("all_gather", "TokcError NCCL: all_gather failed"),
        ("send", "TokcError NCCL: exchange failed"),
    ],
)
def test_what_fails_is_an_error_and_a_group_is_ended(
    fail: str, said: str, library: Path, tmp_path: Path
) -> None:
    found, log = session(library, tmp_path / "log", HOST_NCCL_FAIL=fail)
    assert said in found
    assert log.count("group start") == log.count("group end")


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    script = f"import sys\nsys.modules['nccl'] = None\n{SESSION}"
    found, _ = session(tmp_path, tmp_path / "log", script)
    assert "ArtifactRefused an artifact for several GPUs is run through the package nccl4py" in found
    assert "install the extra `nccl`" in found
