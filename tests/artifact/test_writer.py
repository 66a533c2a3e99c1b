"""Writing artifacts: readable by the safetensors library, aligned, and never half-written."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tokc.artifact.writer import Tensor, write_files, write_safetensors, written_aside
from tokc.errors import TokcError


def tensor(name: str, values: np.ndarray, dtype: str) -> Tensor:
    return Tensor(name, dtype, values.shape, values.nbytes, lambda: values)


def test_the_safetensors_library_reads_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 5)).astype(np.float32), rng.integers(0, 255, 77, np.uint8)
    write_safetensors(
        tmp_path / "m.safetensors", [tensor("a", a, "f32"), tensor("b", b, "u8"), tensor("c", a, "f32")]
    )
    read = load_file(tmp_path / "m.safetensors")
    assert (read["a"] == a).all()
    assert (read["b"] == b).all()
    assert (read["c"] == a).all()


def test_every_tensor_starts_at_a_cache_line(tmp_path: Path) -> None:
    marker = np.frombuffer(b"\xde\xad\xbe\xef" * 5, np.uint8)
    path = tmp_path / "m.safetensors"
    write_safetensors(path, [tensor(f"t{i}", marker, "u8") for i in range(4)])
    data = path.read_bytes()
    places = [i for i in range(len(data)) if data.startswith(marker.tobytes(), i)]
    assert len(places) == 4
    assert all(place % 64 == 0 for place in places)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with written_aside(tmp_path / "x.tokc") as folder:
            write_files(folder, {"a/b.json": b"{}"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_artifact_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.tokc").mkdir()
    (tmp_path / "x.tokc" / "thesis.txt").write_text("mine")
    with pytest.raises(TokcError, match="not an artifact"), written_aside(tmp_path / "x.tokc") as folder:
        write_files(folder, {"manifest.json": b"{}"})
    assert [p.name for p in tmp_path.rglob("*")] == ["x.tokc", "thesis.txt"]


def test_an_older_artifact_is_replaced_whole(tmp_path: Path) -> None:
    for name in ("old.json", "new.json"):
        with written_aside(tmp_path / "x.tokc") as folder:
            write_files(folder, {"manifest.json": b"{}", name: b"{}"})
    assert sorted(p.name for p in (tmp_path / "x.tokc").iterdir()) == ["manifest.json", "new.json"]
