"""The wheel, in an environment that holds its base dependencies, and in one that holds the program's too.

The environments are made without a network: the distributions that the wheel asks for, and those that they
ask for, are linked into them from the environment of the tests.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.report.sample import write_artifact, write_bench

ROOT = Path(__file__).parents[2]
COMPILER = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tvm", "gguf", "ziglang", "transformers")
SIZE_LIMIT_BYTES = 130_000_000
SOURCES = ("tokc", "passes", "targets", "runtime", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, so that no build folder is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, copy = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(source, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--quiet",
    ]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment with the wheel and its base dependencies."""
    return install(wheel, tmp_path_factory.mktemp("base") / "venv", extra="")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a virtual environment with the wheel and what the extra `cli` adds."""
    return install(wheel, tmp_path_factory.mktemp("environment") / "venv", extra="cli")


def install(wheel: Path, folder: Path, *, extra: str) -> Path:
    """Install the wheel and what it asks for with `extra` into a new environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(wheel, extra):
        link(name, packages)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    return folder


def closure(wheel: Path, extra: str = "") -> set[str]:
    """Return the distributions that the wheel needs with `extra`, directly or not."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        text = file.read(metadata).decode()
    found: set[str] = set()
    wanted = [
        (line.removeprefix("Requires-Dist: "), extra)
        for line in text.splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    while wanted:
        text, asked = wanted.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name not in found and (
            requirement.marker is None or requirement.marker.evaluate({"extra": asked})
        ):
            found.add(name)
            wanted += [(line, "") for line in distribution(name).requires or []]
    return found


def link(name: str, packages: Path) -> None:
    """Link everything that a distribution installed at the top of site-packages."""
    installed = distribution(name)
    for top in {file.parts[0] for file in installed.files or () if file.parts[0] != ".."} - {"__pycache__"}:
        if not (packages / top).exists():
            (packages / top).symlink_to(Path(str(installed.locate_file(top))).resolve())


def size(name: str) -> int:
    """Return the bytes that a distribution takes."""
    installed = distribution(name)
    paths = (Path(str(installed.locate_file(file))) for file in installed.files or ())
    return sum(path.stat().st_size for path in paths if path.exists() and "__pycache__" not in path.parts)


def run(environment: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment, away from the sources."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    full = [str(environment / "bin" / command[0]), *command[1:]]
    return subprocess.run(full, capture_output=True, text=True, check=False, cwd=environment, env=clean)


def test_the_folders_are_real_files_under_tokc(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
    for name in (
        "tokc/passes/table.py",
        "tokc/targets/cpu/driver.c",
        "tokc/runtime/engine.py",
        "tokc/cost/prices.toml",
        "tokc/report/style.css",
    ):
        assert entries[name].file_size > 0
    assert not any(entry.external_attr >> 16 & 0o170000 == 0o120000 for entry in entries.values()), "a link"
    tops = {name.split("/")[0] for name in entries}
    assert all(top == "tokc" or top.endswith(".dist-info") for top in tops), tops
    assert any(name.endswith("licenses/LICENSE") for name in entries)


def test_the_program_runs(environment: Path) -> None:
    done = run(environment, "tokc", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tokc ")


def test_without_its_extra_the_program_says_what_is_missing(base: Path) -> None:
    done = run(base, "tokc", "--version")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the program `tokc` needs 'typer'")
    assert "install the extra `cli`" in done.stderr


def test_the_runtime_needs_no_compiler(base: Path) -> None:
    code = (
        "import importlib.util as u, json, sys\n"
        "import tokc.runtime.engine, tokc.runtime.executors.cpu, tokc.cost.measure\n"
        f"there = [n for n in {COMPILER!r} if n in sys.modules or u.find_spec(n)]\n"
        "print(json.dumps([there, tokc.runtime.__file__]))\n"
    )
    done = run(base, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    there, path = json.loads(done.stdout)
    assert there == []
    assert Path(path).is_relative_to(base)


def test_reporting_works_and_building_says_what_is_missing(environment: Path, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path)
    write_bench(artifact)
    done = run(environment, "tokc", "report", str(artifact), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["costs"]
    done = run(environment, "tokc", "build", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: `tokc build` needs '")
    assert "install the extra `build`" in done.stderr


def test_the_runtime_stays_small(wheel: Path, record_property: Callable[[str, object], None]) -> None:
    with zipfile.ZipFile(wheel) as file:
        own = sum(entry.file_size for entry in file.infolist())
    sizes = {name: size(name) for name in closure(wheel)}
    total = own + sum(sizes.values())
    largest = ", ".join(
        f"{name} {sizes[name] / 1e6:.1f}" for name in sorted(sizes, key=sizes.__getitem__)[:-6:-1]
    )
    record_property("runtime_install_bytes", total)
    print(f"runtime-only install: {total / 1e6:.1f} MB; tokc {own / 1e6:.2f}; largest: {largest}")  # noqa: T201
    assert total < SIZE_LIMIT_BYTES
