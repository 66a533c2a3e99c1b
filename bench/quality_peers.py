"""What libraries make of the same weights, for the table of quality: their files, read by our importers."""

import subprocess
from pathlib import Path

import numpy as np

from bench.peers.environments import interpreter
from bench.quality_rows import PEER, Row
from tokc.importers import import_model
from tokc.quality.calibration import Calibration


def peer_model(passes: str, model: Path, folder: Path, export: list[str]) -> Path:
    """Return the file that llama.cpp made of `model`; `passes` is `llama.cpp KIND`, as a row states it.

    `export` is the command that writes `model` as a plain GGUF file, its name left out.
    """
    kind = passes.removeprefix(PEER)
    plain, path = folder / f"{model.name}.gguf", folder / f"{model.name}.{kind}.gguf"
    if not plain.exists():
        subprocess.run([*export, str(plain)], check=True)
    if not path.exists():
        partial = path.with_suffix(".partial")
        command = [interpreter("llamacpp"), "-m", "bench.peers.llamacpp_quantize", plain, partial, kind]
        subprocess.run(command, check=True)
        partial.rename(path)
    return path


def library_model(row: Row, model: Path, folder: Path) -> Path:
    """Return the folder of codes that a row's library made of `model`, calibrated on our own text."""
    path, ids = folder / f"{model.name}.{row.name}", folder / f"{model.name}.calibration.npy"
    if path.exists():
        return path
    if not ids.exists():
        program = import_model(model)
        np.save(ids, Calibration().token_ids(program))
    partial = path.with_name(f"{path.name}.partial")
    task = [model, partial, row.library_method, row.bits, row.group, row.grid, ids]
    command = [interpreter(row.library), "-m", f"bench.peers.{row.library}_quantize", *map(str, task)]
    subprocess.run(command, check=True)
    partial.rename(path)
    return path
