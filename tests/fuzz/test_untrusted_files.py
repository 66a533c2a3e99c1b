"""Files from anywhere: whatever their bytes, reading ends in a value or in one error of ours, and soon.

`TOKC_FUZZ=N` tries N damages of each kind of file; as many as were tried are printed. Address space is
bounded, so that a size that is believed is found out.
"""

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuzz.damage import damaged, damaged_json
from tests.importers.gguf_writing import Kind, gguf_model, write_gguf
from tests.runtime.small_artifact import write_small_artifact
from tests.tiny_models import tiny_folder
from tokc.errors import TokcError
from tokc.importers import import_model
from tokc.runtime.artifact import Artifact
from tokc.runtime.manifest import Manifest
from tokc.runtime.safetensors import map_file

COUNT = int(os.environ.get("TOKC_FUZZ", "150"))
MOST_S = 20.0
MORE_BYTES = 4 << 30


@contextmanager
def bounded() -> Iterator[None]:
    """Let the process map only so much more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def hold(attempt: Callable[[int], object], record_property: Callable[[str, object], None]) -> None:
    """Try every seed; anything but a value or a TokcError is a failure that names its seed."""
    accepted, slowest = 0, 0.0
    with bounded():
        for seed in range(COUNT):
            start_s = time.perf_counter()
            try:
                attempt(seed)
                accepted += 1
            except TokcError as error:
                assert error.problem, f"seed {seed}: an error that says nothing"  # noqa: PT017
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            slowest = max(slowest, time.perf_counter() - start_s)
    record_property("tried", COUNT)
    assert slowest < MOST_S
    assert accepted < COUNT, "nothing was damaged"


def touched(model: Path) -> None:
    """Import a model and read every weight."""
    program = import_model(model)
    for value in program.graph.initializers.values():
        if value.const_value is not None:
            value.const_value.numpy()


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(gguf_model("llama"), "llama", path, Kind.Q4_0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama3", tmp_path_factory.mktemp("folder") / "model")


def test_gguf_files(
    gguf_bytes: bytes, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "model.gguf"

    def attempt(seed: int) -> None:
        path.write_bytes(damaged(gguf_bytes, seed))
        touched(path)

    hold(attempt, record_property)


def test_checkpoints(folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()

    def attempt(seed: int) -> None:
        (copy / "model.safetensors").write_bytes(damaged(whole, seed))
        touched(copy)

    hold(attempt, record_property)


def test_configurations(folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())

    def attempt(seed: int) -> None:
        value = damaged_json(json.loads(json.dumps(config)), seed)
        (copy / "config.json").write_text(json.dumps(value))
        touched(copy)

    hold(attempt, record_property)


def test_manifests(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    artifact = write_small_artifact(tmp_path / "small.tokc")
    manifest = json.loads((artifact / "manifest.json").read_text())

    def attempt(seed: int) -> None:
        value = damaged_json(json.loads(json.dumps(manifest)), seed)
        (artifact / "manifest.json").write_text(json.dumps(value))
        Artifact.open(artifact)

    hold(attempt, record_property)


def test_manifests_that_are_hardly_json(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    whole = (write_small_artifact(tmp_path / "small.tokc") / "manifest.json").read_bytes()
    hold(lambda seed: Manifest.parse(damaged(whole, seed)), record_property)


def test_weights_of_artifacts(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    path = write_small_artifact(tmp_path / "small.tokc") / "model.safetensors"
    whole, other = path.read_bytes(), tmp_path / "other.safetensors"

    def attempt(seed: int) -> None:
        other.write_bytes(damaged(whole, seed, head=256))
        for array in map_file(other).values():
            array.sum()

    hold(attempt, record_property)
