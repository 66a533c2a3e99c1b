"""The drivers' own calls, through the real bindings, to a library that takes the place of the vendor's."""

import ctypes
import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import repository
from tests.runtime.gpu_drivers import HostDriver, RecordingDriver
from tests.runtime.gpu_model import KERNELS, launch_abi, write_gpu_artifact
from tests.runtime.host_gpu_session import batches
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.gpu import GpuExecutor

KV_BYTES = 16 * 80
VENDORS = ("cuda", "hip")
LIBRARIES = {"cuda": "libcuda.so.1", "hip": "libamdhip64.so"}
PAIRS = {
    "DevicePrimaryCtxRetain": "DevicePrimaryCtxRelease",
    "MemAlloc": "MemFree",
    "HostAlloc": "HostFree",
    "ModuleLoadData": "ModuleUnload",
    "StreamCreate": "StreamDestroy",
    "EventCreate": "EventDestroy",
    "StreamBeginCapture": "StreamEndCapture",
    "GraphInstantiate": "GraphExecDestroy",
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds both vendors' libraries."""
    folder = tmp_path_factory.mktemp("libraries")
    source = Path(__file__).with_name("host_gpu.c")
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    made = folder / LIBRARIES["cuda"]
    subprocess.run([*command, str(source), "-o", str(made)], check=True, capture_output=True, timeout=120)
    (folder / "lib").mkdir()
    (folder / "lib" / LIBRARIES["hip"]).symlink_to(made)
    return folder


@dataclass
class Session:
    """What a process printed, and what the library logged."""

    said: str
    log: list[str]

    @property
    def calls(self) -> Counter[str]:
        return Counter(line for line in self.log if " " not in line)

    @property
    def ran(self) -> list[list[str]]:
        return [line.split()[1:] for line in self.log if line.startswith("run ")]

    def places(self, pointers: str) -> list[tuple[int, int]]:
        """Return packed pointers as which allocation they point into, and how far."""
        blocks = [tuple(map(int, line.split()[1:])) for line in self.log if line.startswith("+memory ")]
        return places(pointers, blocks)


def places(pointers: str, blocks: list[tuple[int, ...]]) -> list[tuple[int, int]]:
    found = []
    data = bytes.fromhex(pointers)
    for at in range(0, len(data), 8):
        pointer = int.from_bytes(data[at : at + 8], "little")
        inside = [
            (n, pointer - start) for n, (start, size) in enumerate(blocks) if start <= pointer < start + size
        ]
        found.append(inside[-1] if inside else (-1, pointer))
    return found


def abi(vendor: str) -> dict[str, object]:
    """Return the launch ABI for the architecture that the library claims; one kernel takes much memory."""
    found = launch_abi() if vendor == "cuda" else {**launch_abi(ptx=None), "backend": "hip", "arch": "gfx942"}
    found["kernels"][0]["shared_bytes"] = 96 * 1024
    return found


def session(
    vendor: str, artifact: Artifact, libraries: Path, *, kv_bytes: int = KV_BYTES, **knobs: str
) -> Session:
    log = artifact.path.with_suffix(f".{len(list(artifact.path.parent.iterdir()))}.log")
    where = {"LD_LIBRARY_PATH" if vendor == "cuda" else "ROCM_PATH": str(libraries)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.host_gpu_session", str(artifact.path), str(kv_bytes)],
        capture_output=True, text=True, check=False, cwd=repository(), timeout=120,
        env={**os.environ, **where, **knobs, "HOST_GPU_LOG": str(log)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Session(done.stdout, log.read_text().splitlines() if log.exists() else [])


def recorded(vendor: str, artifact: Artifact) -> HostDriver:
    """Run the same steps on a recording driver."""
    driver = RecordingDriver(arch="sm_86" if vendor == "cuda" else "gfx942", backend=vendor)
    executor = GpuExecutor(artifact, driver, kv_bytes=KV_BYTES)
    for batch in batches(executor.num_pages):
        executor.step(batch)
    return driver


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_library_is_given_what_the_executor_asks_for(
    vendor: str, libraries: Path, tmp_path: Path
) -> None:
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi(vendor))
    found = session(vendor, artifact, libraries)
    arch = "sm_86" if vendor == "cuda" else "gfx942"
    assert f"DeviceProperties(name='host GPU', arch='{arch}', memory_bytes={1 << 26})" in found.said

    driver = recorded(vendor, artifact)
    entries = {kernel.symbol: kernel.function().__name__ for kernel in KERNELS}
    expected = [
        [entries[each.symbol], *map(str, (*each.grid, each.threads, 1, 1, each.shared_bytes))]
        for each in driver.ran
    ]
    steps = len(expected)
    assert [line[:-1] for line in found.ran[:steps]] == expected
    blocks = list(driver.allocated)
    for line, each in zip(found.ran, driver.ran, strict=False):
        assert found.places(line[-1]) == places(each.buffer.hex(), blocks)

    # The profile runs the first batch once more, each launch between two events 2.5 ms apart.
    assert [line[:-1] for line in found.ran[steps:]] == expected[: len(found.ran) - steps]
    assert f"profile [{0.0025 * 6}, {0.0025 * 5}]" in found.said
    assert found.calls["GraphLaunch"] == 2
    assert found.calls["GraphDestroy"] == found.calls["GraphInstantiate"] == 1
    assert found.log.count("image ELFem") == 1  # the first letters of the kernel's name
    if vendor == "cuda":
        assert "attribute embed 8 98304" in found.log
        assert found.calls["FuncSetAttribute"] == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_all_that_was_made_is_given_back(vendor: str, libraries: Path, tmp_path: Path) -> None:
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi(vendor))
    for fail in ("", "LaunchKernel:3", "LaunchKernel:7", "GraphInstantiate:1", "GraphLaunch:1", "MemFree:2"):
        found = session(vendor, artifact, libraries, **({"HOST_GPU_FAIL": fail} if fail else {}))
        calls = found.calls
        for make, drop in PAIRS.items():
            assert calls[make] - fail.startswith(make) == calls[drop], (fail, make, calls)
        if fail and not fail.startswith("MemFree"):
            assert "failed: unspecified launch failure" in found.said, fail


@pytest.mark.parametrize("vendor", VENDORS)
def test_memory_that_ends_is_an_error_and_what_was_made_is_given_back(
    vendor: str, libraries: Path, tmp_path: Path
) -> None:
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi(vendor))
    found = session(vendor, artifact, libraries, kv_bytes=1 << 30)
    assert "refused: a cache of 1073741824 bytes does not fit" in found.said
    assert all(found.calls[make] == found.calls[drop] for make, drop in PAIRS.items())
    found = session(vendor, artifact, libraries, HOST_GPU_FAIL="MemAlloc:2")
    assert "refused: " in found.said
    assert all(found.calls[make] - (make == "MemAlloc") == found.calls[drop] for make, drop in PAIRS.items())


@pytest.mark.parametrize(
    ("vendor", "words"), [("cuda", "this machine has no CUDA device"), ("hip", "there is no ROCm device 0")]
)
def test_a_machine_without_a_device_is_told_so(
    vendor: str, words: str, libraries: Path, tmp_path: Path
) -> None:
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi(vendor))
    assert words in session(vendor, artifact, libraries, HOST_GPU_DEVICES="0").said


@pytest.mark.parametrize(
    ("vendor", "words"),
    [
        ("cuda", "this machine has no CUDA driver: libcuda.so.1 is not found"),
        ("hip", "this machine has no ROCm"),
    ],
)
def test_a_machine_without_the_driver_is_told_what_to_install(
    vendor: str, words: str, tmp_path: Path
) -> None:
    with suppress(OSError):
        ctypes.CDLL(LIBRARIES[vendor])
        pytest.skip("this machine has the driver")
    artifact = write_gpu_artifact(tmp_path / "a.tokc", abi=abi(vendor))
    (tmp_path / "empty").mkdir()
    said = session(vendor, artifact, tmp_path / "empty").said
    assert f"refused: {words}" in said
    assert "hint: install" in said
