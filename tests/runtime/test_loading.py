"""Loading an artifact while other work is done: the same bytes, refused when one of them is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import repository
from tests.runtime.small_artifact import flip_a_bit, weights, write_small_artifact
from tokc.errors import ArtifactRefused
from tokc.runtime import artifact as artifact_module
from tokc.runtime import reading as reading_module
from tokc.runtime.artifact import WEIGHTS, Artifact
from tokc.runtime.background import Background
from tokc.runtime.reading import Reading


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an artifact that is read in many pieces, and of which no file is small."""
    monkeypatch.setattr(reading_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(artifact_module, "SMALL_BYTES", 1)
    return write_small_artifact(tmp_path / "small.tokc", {"large.bin": bytes(5000)})


def begun(folder: Path, *, verify: bool = True) -> Artifact:
    return Artifact.open(folder, verify=False).begin(verify=verify)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("residence", ["huge-pages", "mmap"])
def test_a_begun_artifact_holds_the_files_weights(
    folder: Path, verify: bool, residence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKC_WEIGHTS", residence)
    artifact = begun(folder, verify=verify)
    found = artifact.resident_tensors()
    artifact.finish()
    for name, array in weights().items():
        assert np.array_equal(found[name], array), name
        assert found[name].ctypes.data % 64 == 0


def test_an_artifact_that_was_not_begun_reads_its_weights_when_asked(folder: Path) -> None:
    found = Artifact.open(folder, verify=False).resident_tensors()
    assert all(np.array_equal(found[name], array) for name, array in weights().items())


@pytest.mark.parametrize("residence", ["huge-pages", "mmap"])
@pytest.mark.parametrize("place", [3, 100, -1])
def test_weights_with_a_changed_bit_are_refused_each_time_it_is_asked(
    folder: Path, residence: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKC_WEIGHTS", residence)
    flip_a_bit(folder / WEIGHTS, place)
    artifact = begun(folder)
    for _ in range(2):
        with pytest.raises(ArtifactRefused, match=f"'{WEIGHTS}' was changed"):
            artifact.finish()


def test_a_large_file_with_a_changed_bit_is_refused_at_the_end(folder: Path) -> None:
    flip_a_bit(folder / "large.bin", 77)
    artifact = begun(folder)
    with pytest.raises(ArtifactRefused, match=r"'large.bin' was changed"):
        artifact.finish()


def test_changed_kernels_are_refused_before_anything_can_load_them(folder: Path) -> None:
    flip_a_bit(folder / "kernels/step.so", 0)
    with pytest.raises(ArtifactRefused, match=r"'kernels/step.so' was changed"):
        begun(folder)


@pytest.mark.parametrize("damage", ["missing", "shorter", "added"])
def test_missing_shorter_and_added_files_are_refused_at_once(folder: Path, damage: str) -> None:
    match damage:
        case "missing":
            (folder / WEIGHTS).unlink()
        case "shorter":
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
        case _:
            (folder / "new.bin").write_bytes(b"x")
    with pytest.raises(ArtifactRefused, match="new.bin" if damage == "added" else WEIGHTS):
        begun(folder)


def test_a_file_that_ends_early_is_refused_and_not_waited_for(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    reading = Reading(folder / WEIGHTS, size + 1, hashed=True)
    reading.wait(size)
    with pytest.raises(ArtifactRefused, match="became shorter"):
        reading.wait(size + 1)
    with pytest.raises(ArtifactRefused, match="became shorter"):
        reading.sha256()


def test_a_header_that_claims_more_than_the_file_is_refused(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + content[8:])
    with pytest.raises(ArtifactRefused, match="header is wrong"):
        begun(folder, verify=False).resident_tensors()


def test_what_fails_in_the_background_is_raised_where_it_is_wanted() -> None:
    background = Background(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.result()
    assert Background(lambda: 7).result() == 7


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "tokc.runtime.artifact",
            ["numpy", "asyncio", "jinja2", "tokenizers", "concurrent.futures", "logging"],
        ),
        ("tokc.runtime.engine", ["asyncio", "jinja2", "concurrent.futures", "logging", "secrets"]),
    ],
)
def test_loading_imports_no_more_than_it_needs(module: str, absent: list[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=repository())
    assert set(json.loads(done.stdout)).isdisjoint(absent)
