"""Option values that do not exist: one clear error that lists what does, and the exit code of wrong usage."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("option", "value", "listed"),
    [
        ("--target", "gpu", "cpu"),
        ("--target", "cpu:pentium", "x86-64-v3"),
        ("--dtype", "int5", "int2, int3, int4, int8, f16, f32"),
        ("--kv-dtype", "f64", "f16, int8, int4, f32"),
    ],
)
def test_an_unknown_value_lists_the_known(option: str, value: str, listed: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from tokc.cli.app import main; main()",
        "build",
        "m.gguf",
        option,
        value,
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith("error: unknown")
    assert listed in process.stderr
    assert "Traceback" not in process.stderr
    assert list(tmp_path.iterdir()) == []
