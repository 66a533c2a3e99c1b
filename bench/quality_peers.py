"""What libraries make of the same weights, for the table of quality: their files, read by our importers."""

import subprocess
from pathlib import Path

from bench.peers.environments import interpreter
from bench.quality_rows import PEER


def peer_model(passes: str, model: Path, folder: Path, export: list[str]) -> Path:
    """Return the file that a library made of `model`; `passes` is `llama.cpp KIND`, as a row states it.

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
