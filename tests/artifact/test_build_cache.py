import os
import re
from pathlib import Path

import pytest

import tokc
from tests.runtime.small_artifact import flip_a_bit, write_small_artifact
from tokc.artifact import build_cache
from tokc.artifact.build_cache import BuildCache, Option, default_folder, key_of
from tokc.errors import TokcError
from tokc.runtime.artifact import verify

OPTIONS: dict[str, Option] = {"target": "cpu", "dtype": "int4", "context": None, "check": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def test_the_same_inputs_have_the_same_key_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    first = key_of(model, OPTIONS, "name")
    assert key_of(model.rename(tmp_path / "elsewhere"), OPTIONS, "name") == first
    assert len(first) == 64


def test_whatever_changes_the_bytes_changes_the_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key_of(model, OPTIONS, "name"),
        key_of(model, OPTIONS, "other"),
        *(key_of(model, {**OPTIONS, **other}, "name") for other in ({"dtype": "int8"}, {"context": 64})),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(build_cache, "cpu_features", lambda: frozenset({"sse"}))
        keys.append(key_of(model, OPTIONS, "name"))
        patch.setattr(build_cache, "_source_hash", lambda: "changed")
        keys.append(key_of(model, OPTIONS, "name"))
        patch.setattr(build_cache, "_version", lambda _: "0.1")
        keys.append(key_of(model, OPTIONS, "name"))
    text = model.with_name("text.txt")
    for words in ("some words", "other words"):
        text.write_text(words)
        keys.append(key_of(model, OPTIONS, "name", calibration_text=text))
    (model / "model.safetensors").write_bytes(b"weightz")
    keys.append(key_of(model, OPTIONS, "name"))
    (model / "generation_config.json").write_text("{}")
    keys.append(key_of(model, OPTIONS, "name"))
    assert len(set(keys)) == len(keys)


def test_what_lies_beside_a_graph_is_part_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    graph = tmp_path / "onnx" / "model.onnx"
    keys = set()
    for file in (graph, graph.with_suffix(".data"), tmp_path / "config.json", tmp_path / "tokenizer.json"):
        file.write_bytes(b"changed")
        keys.add(key_of(graph, OPTIONS, "name"))
    assert len(keys) == 4
    assert key_of(graph, OPTIONS, "name") in keys


def test_the_compilers_source_is_hashed_and_no_artifact_comes_of_the_folders_left_out() -> None:
    root = Path(tokc.__file__).parent
    compiler = [root / "compiler.py", *(root / "artifact").glob("*.py"), *(root / "targets").rglob("*.py")]
    assert len(compiler) > 50
    for path in compiler:
        named = re.findall(r"tokc\.(cli|report|runtime\.server)\b", path.read_text())
        assert not named, f"{path} uses tokc.{named}, whose source the key of a build does not hold"
    assert build_cache._source_hash() == build_cache._source_hash()


def test_a_build_for_another_machine_does_not_depend_on_this_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Option] = {**OPTIONS, "target": "cuda:sm_90"}
    first = key_of(model, options, "name")
    monkeypatch.setattr(build_cache, "cpu_features", lambda: frozenset({"sse"}))
    assert key_of(model, options, "name") == first


def test_what_was_kept_comes_back_whole(cache: BuildCache, tmp_path: Path) -> None:
    artifact, out = write_small_artifact(tmp_path / "a.tokc"), tmp_path / "deep" / "b.tokc"
    assert cache.fetch("key", out) is None
    assert cache.keep("key", artifact, 12.5)
    kept = cache.fetch("key", out)
    assert kept is not None
    assert (kept.path, kept.seconds) == (out, 12.5)
    assert set(verify(out)) == set(verify(artifact))


def test_an_entry_that_was_damaged_is_dropped_and_leaves_nothing(cache: BuildCache, tmp_path: Path) -> None:
    cache.keep("key", write_small_artifact(tmp_path / "a.tokc"), 1.0)
    flip_a_bit(cache.folder / "key" / "model.safetensors", -1)
    assert cache.fetch("key", tmp_path / "b.tokc") is None
    assert cache.entries() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tokc", "cache"]


def test_the_cache_is_bounded_and_forgets_what_was_not_used(tmp_path: Path) -> None:
    artifact = write_small_artifact(tmp_path / "a.tokc")
    size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
    cache = BuildCache(tmp_path / "cache", limit_bytes=2 * size)
    for age, key in ((30, "old"), (20, "older")):
        assert cache.keep(key, artifact, 1.0)
        os.utime(cache.folder / key, (1e9 - age, 1e9 - age))
    assert cache.fetch("old", tmp_path / "b.tokc")
    assert cache.keep("new", artifact, 1.0)
    assert {path.name for path in cache.entries()} == {"old", "new"}
    assert not BuildCache(tmp_path / "small", limit_bytes=size - 1).keep("key", artifact, 1.0)
    assert not (tmp_path / "small").exists()


def test_a_cache_that_cannot_be_written_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    artifact = write_small_artifact(tmp_path / "a.tokc")
    assert not BuildCache(tmp_path / "file").keep("key", artifact, 1.0)


def test_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tokc" / "builds"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to pass over
    assert default_folder() == Path.home() / ".cache" / "tokc" / "builds"


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokcError, match=r"cannot read the model '.*none\.gguf'"):
        key_of(tmp_path / "none.gguf", OPTIONS, "name")
