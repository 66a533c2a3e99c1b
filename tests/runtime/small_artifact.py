"""A small artifact: real weights and manifest, and files that nothing runs."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import Tensor, write_files, write_safetensors
from tokc.runtime.artifact import MANIFEST, WEIGHTS
from tokc.runtime.manifest import FileInfo, KvInfo, LimitsInfo, Manifest, ModelInfo, TargetInfo

WEIGHT_BYTES = 1 << 18


def weights() -> dict[str, npt.NDArray[np.uint8]]:
    """Return random weights, the same at each call; the first fills no whole number of 64 bytes."""
    rng = np.random.default_rng(5)
    return {
        "first": rng.integers(0, 256, WEIGHT_BYTES - 8, np.uint8),
        "second": rng.integers(0, 9, 64, np.uint8),
    }


def write_small_artifact(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write an artifact with `files` besides its weights and return its folder."""
    folder.mkdir()
    tensors = [
        Tensor(name, "u8", array.shape, array.nbytes, lambda array=array: array)
        for name, array in weights().items()
    ]
    digest = write_safetensors(folder / WEIGHTS, tensors)
    entries = {
        WEIGHTS: FileInfo(digest, (folder / WEIGHTS).stat().st_size),
        **write_files(folder, {"plan.json": b"{}", "kernels/step.so": b"no code", **(files or {})}),
    }
    manifest = Manifest(
        tokc_version="0",
        name="small",
        target=TargetInfo("cpu", "x86-64", "x86_64", (), "step.so"),
        model=ModelInfo("llama", 8, 1, 1, 1, 8, 8, 8),
        kv=KvInfo(16, "f16", 1, 1, 8),
        limits=LimitsInfo(64, 16, 16),
        files=entries,
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    return folder


def flip_a_bit(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
