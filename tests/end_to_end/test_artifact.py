"""The real artifact: same bytes again, refused when damaged or foreign, cheap to build and serve."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CONTEXT, BuiltModel, repository
from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.executors import cpu
from tokc.runtime.tokenizer import Tokenizer
from tokc.user_cache import cache_folder

GIB = 1 << 30
MIB = 1 << 20
FP16_BYTES = 2
MOST_BUILD_S = 90
TARGET_LOAD_S, MOST_LOAD_S = 0.3, 1.5
DISK_KIB = 40_000
COMMAND_LINE = "from tokc.cli.app import main; main()"
SERVE = """
import json, re, sys, tokc
with tokc.load(sys.argv[1]) as engine:
    engine.generate_all(["The sea is"] * 8, max_tokens=64, ignore_eos=True)
    executor = engine.executor
    kv = executor.num_pages * executor.kv_bytes_per_page
    peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    print(json.dumps({"rss": peak_kib * 1024, "kv": kv}))
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(smollm2_int4: BuiltModel, tmp_path: Path) -> Path:
    """Return a copy of the artifact whose files may be replaced, not written into: they are links."""
    return shutil.copytree(smollm2_int4.path, tmp_path / "copy.tokc", copy_function=os.link)


def replace_file(path: Path, content: bytes) -> None:
    """Put a new file in place of a link."""
    path.unlink()
    path.write_bytes(content)


def test_a_rebuild_in_another_folder_has_the_same_bytes(
    smollm2_gguf: Path, smollm2_int4: BuiltModel, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another place" / smollm2_int4.path.name
    command = [
        sys.executable,
        "-m",
        "tests.end_to_end.measured_build",
        smollm2_gguf,
        elsewhere,
        "int4",
        str(CONTEXT),
    ]
    empty = tmp_path / "cache" / "tokc"  # of kernels; the linker's own is the same
    empty.mkdir(parents=True)
    linkers = cache_folder() / "zig"
    linkers.mkdir(parents=True, exist_ok=True)
    (empty / "zig").symlink_to(linkers)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "XDG_CACHE_HOME": str(empty.parent)}
    subprocess.run(command, check=True, capture_output=True, cwd=repository(), env=environment)
    assert list((empty / "kernels").iterdir())
    ours, theirs = contents(smollm2_int4.path), contents(elsewhere)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize(
    "name", ["model.safetensors", "kernels/step.so", "plan.json", "tokenizer.json", "tokenizer.table"]
)
@pytest.mark.parametrize("damage", ["truncated", "one bit"])
def test_a_damaged_file_is_refused_by_name(copy: Path, name: str, damage: str) -> None:
    content = bytearray((copy / name).read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 3] ^= 1
    replace_file(copy / name, bytes(content))
    with pytest.raises(ArtifactRefused, match=name):
        Engine.open(copy)


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_manifest_is_refused(copy: Path, keep: float) -> None:
    manifest = (copy / "manifest.json").read_bytes()
    replace_file(copy / "manifest.json", manifest[: int(len(manifest) * keep)])
    with pytest.raises(ArtifactRefused, match="manifest"):
        Engine.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "s390x"}, "the artifact is for 's390x'"),
        ({"features": ["avx4096"]}, "this CPU lacks avx4096"),
    ],
)
def test_an_artifact_for_another_cpu_is_refused_before_its_code_is_loaded(
    copy: Path, change: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["target"] |= change
    replace_file(copy / "manifest.json", json.dumps(manifest).encode())
    monkeypatch.setattr(cpu, "load_library", lambda _: pytest.fail("the kernels were loaded"))
    with pytest.raises(ArtifactRefused, match=message):
        Engine.open(copy)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(smollm2_gguf: Path, tmp_path: Path) -> None:
    limited = f'ulimit -f {DISK_KIB}; exec "$0" -c "{COMMAND_LINE}" build "$1" --out "$2" --no-check'
    command = ["bash", "-c", limited, sys.executable, smollm2_gguf, tmp_path / "out" / "model.tokc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository())
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("error: ") == 1
    assert "cannot write the artifact" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_build_takes_little_time_and_memory(
    smollm2_int4: BuiltModel, figure: Callable[[str], None]
) -> None:
    model = Artifact.open(smollm2_int4.path)
    parameters = 134_515_008
    limit = 2 * FP16_BYTES * parameters + GIB
    figure(
        f"build of SmolLM2-135M ({model.manifest.target.device}): {smollm2_int4.build_s:.1f} s,"
        f" peak {smollm2_int4.peak_rss_bytes / MIB:.0f} MiB of at most {limit / MIB:.0f}"
    )
    assert smollm2_int4.build_s < MOST_BUILD_S
    assert smollm2_int4.peak_rss_bytes < limit


def test_an_artifact_loads_fast(smollm2_int4: BuiltModel, figure: Callable[[str], None]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with Engine.open(smollm2_int4.path):
            times.append(time.perf_counter() - start)
    figure(f"load of the int4 artifact, hashes checked: {min(times):.2f} s (aim: {TARGET_LOAD_S} s)")
    assert min(times) < MOST_LOAD_S


def test_the_table_beside_the_tokenizer_encodes_as_the_tokenizer(smollm2_int4: BuiltModel) -> None:
    whole = Tokenizer((smollm2_int4.path / "tokenizer.json").read_text())
    artifact = Artifact.open(smollm2_int4.path, verify=False)
    text = Path(__file__).read_text() + "Zażółć gęślą jaźń — 日本語 🦊 1234567 <|im_start|>user\n\n\t x"
    for start in range(0, len(text), 300):
        narrow = Tokenizer.of(artifact)
        piece = text[start : start + 300]
        ids = whole.encode(piece)
        assert narrow.encode(piece) == ids
        assert narrow.decode(ids) == whole.decode(ids)
        assert not narrow.is_whole, "a short text needs the table alone"


def test_serving_takes_little_more_memory_than_weights_and_cache(
    smollm2_int4: BuiltModel, figure: Callable[[str], None]
) -> None:
    command = [sys.executable, "-c", SERVE, smollm2_int4.path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=repository())
    found = json.loads(done.stdout)
    artifact = sum(len(content) for content in contents(smollm2_int4.path).values())
    limit = 1.5 * (artifact + found["kv"])
    figure(f"serving 8 sequences: peak {found['rss'] / MIB:.0f} MiB of at most {limit / MIB:.0f}")
    assert found["rss"] < limit
