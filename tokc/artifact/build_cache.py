"""Artifacts that were built before, found by what they were built of.

The key is the sha256 of all that an artifact's bytes follow from: the model's files, the options, the name,
tokc's version and source, the packages that compile, and the machine where it is the target. Nothing of the
compiler is imported, so that a hit takes as long as hashing the model and copying the artifact.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tokc
from tokc.artifact.writer import canonical_json, written_aside
from tokc.cost.devices import cpu_features, cpu_name
from tokc.errors import TokcError
from tokc.model_files import sha256
from tokc.runtime.artifact import folder_bytes, verify
from tokc.user_cache import cache_folder

LIMIT_BYTES = 10 << 30
HOST_KINDS = ("cpu", "xla")
DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # a build for a GPU that is here runs its code once
# What makes an artifact's bytes, beside tokc itself.
PACKAGES = (
    "apache-tvm", "gguf", "jax", "libtpu", "ml_dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime",
    "onnxscript", "tokenizers", "torch", "triton", "ziglang",
)  # fmt: skip
GRAPHS = (".onnx", ".pt2")  # whose configuration and weights may lie beside them
TEXTS = (".json", ".jinja")
SOURCES = (".py", ".c", ".toml", ".txt")  # with the calibration text
PASSED_OVER = {"cli", "report", "server"}  # folders that no artifact is made by

Option = str | int | bool | None


@dataclass(frozen=True)
class Kept:
    """A build that was found again; `seconds` is what it took when it was made."""

    path: Path
    seconds: float


def default_folder() -> Path:
    """Return the folder of builds in the user's cache."""
    return cache_folder() / "builds"


def schedules_folder() -> Path:
    """Return where `tokc tune-kernels` keeps what it finds."""
    return cache_folder() / "schedules"


@dataclass(frozen=True)
class BuildCache:
    """A folder with an artifact a key, of `limit_bytes` at most; what was not used for longest goes first."""

    folder: Path
    limit_bytes: int = LIMIT_BYTES

    def fetch(self, key: str, out: Path) -> Kept | None:
        """Copy the artifact of a key to `out` and check its hashes; None if there is none that is whole."""
        entry = self.folder / key
        if not (entry / "manifest.json").is_file():
            return None
        try:
            with written_aside(out) as folder:
                shutil.copytree(entry, folder, dirs_exist_ok=True)
                verify(folder)
            seconds = float(json.loads(self._note(key).read_text())["seconds"])
        except (TokcError, OSError, ValueError, KeyError):
            self._drop(key)
            return None
        with suppress(OSError):
            os.utime(entry)
        return Kept(out, seconds)

    def keep(self, key: str, artifact: Path, seconds: float) -> bool:
        """Keep a copy of an artifact that took `seconds` to build; return whether there was room."""
        if folder_bytes(artifact) > self.limit_bytes:
            return False
        try:
            with written_aside(self.folder / key) as folder:
                shutil.copytree(artifact, folder, dirs_exist_ok=True)
            self._note(key).write_bytes(canonical_json({"seconds": round(seconds, 2)}))
            os.utime(self.folder / key)
            self._trim()
        except (TokcError, OSError):
            return False
        return True

    def entries(self) -> list[Path]:
        """Return the artifacts that are kept, the one that was not used for longest first."""
        found = [path for path in self.folder.glob("*") if (path / "manifest.json").is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _trim(self) -> None:
        sizes = {path: folder_bytes(path) for path in self.entries()}
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self.limit_bytes:
                return
            self._drop(path.name)
            total -= size

    def _drop(self, key: str) -> None:
        shutil.rmtree(self.folder / key, ignore_errors=True)
        with suppress(OSError):
            self._note(key).unlink()

    def _note(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def key_of(
    model: Path,
    options: Mapping[str, Option],
    name: str,
    *,
    lora: Sequence[Path] = (),
    calibration_text: Path | None = None,
    heads: Path | None = None,
) -> str:
    """Return the key of a build: 64 hexadecimal digits.

    `options` are the build's, as they were given; `name` is the artifact's, which its manifest repeats;
    `lora` are the adapters that are merged, in order; `calibration_text` is what passes are calibrated on, if
    it is not the one that comes with tokc; `heads` are those of a draft.
    Raises: TokcError if the model cannot be read.
    """
    target = str(options["target"])
    stated = {
        "format": 1,
        "inputs": _hashes(model),
        "lora": [[path.resolve().name, _hashes(path)] for path in lora],
        "calibration_text": None if calibration_text is None else _hashes(calibration_text),
        **({} if heads is None else {"heads": _hashes(heads)}),
        "options": dict(options),
        "name": name,
        "tokc": tokc.__version__,
        "source": _source_hash(),
        "packages": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "host": _host(target),
        **_schedules(target),
    }
    return hashlib.sha256(canonical_json(stated)).hexdigest()


def _host(target: str) -> list[str]:
    drivers = [path for path in DRIVERS if Path(path).exists()]
    if target.partition(":")[0] not in HOST_KINDS:
        return drivers
    return [platform.machine(), cpu_name(), *sorted(cpu_features()), *drivers]


def _schedules(target: str) -> dict[str, dict[str, str]]:
    """Return what builds for CPUs take from `tokc tune-kernels`, if it ran here."""
    files = sorted(schedules_folder().glob("*.json")) if target.partition(":")[0] == "cpu" else []
    return {"schedules": {path.name: sha256(path) for path in files}} if files else {}


def _hashes(model: Path) -> dict[str, str]:
    """Return the sha256 of the model's file and what belongs to it, or of every file of its folder."""
    try:
        if model.is_dir():
            files = sorted(path for path in model.rglob("*") if path.is_file())
            return {path.relative_to(model).as_posix(): sha256(path) for path in files}
        beside = _beside(model) if model.suffix in GRAPHS else {}
        return {model.name: sha256(model), **beside}
    except OSError as error:
        raise TokcError(f"cannot read the model '{model}': {error.strerror or error}") from error


def _beside(graph: Path) -> dict[str, str]:
    """Return the sha256 of what may belong to a graph: files in its folder, texts in the one above."""
    folder = graph.resolve().parent
    files = {f"beside/{path.name}": path for path in folder.iterdir()}
    above = {f"above/{path.name}": path for path in folder.parent.glob("*") if path.suffix in TEXTS}
    return {name: sha256(path) for name, path in sorted({**files, **above}.items()) if path.is_file()}


def _source_hash() -> str:
    """Return the sha256 over the compiler's own files, so that another compiler is another build."""
    root, digest = Path(tokc.__file__).parent, hashlib.sha256()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(set(folders) - PASSED_OVER)
        for file in sorted(file for file in files if file.endswith(SOURCES)):
            path = Path(folder, file)
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
