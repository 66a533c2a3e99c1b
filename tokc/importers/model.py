"""A model's path becomes a Program, whichever way its files are laid out."""

from collections.abc import Sequence
from pathlib import Path

from tokc.errors import ImportRefused
from tokc.importers.folder import CONFIG, load_folder
from tokc.importers.gguf import load_gguf
from tokc.importers.gguf_file import split_files
from tokc.importers.onnx import ONNX, load_onnx, onnx_in
from tokc.importers.torch_export import EXPORTED, load_exported
from tokc.ir.program import Program

LOADERS = {ONNX: load_onnx, EXPORTED: load_exported}


def import_model(path: Path | str, context: int | None = None, lora: Sequence[Path] = ()) -> Program:
    """Import a Hugging Face folder, a .gguf, .onnx or .pt2 file, or a folder with one of those.

    `context` in tokens caps the positions. A graph needs its config.json beside it.
    The LoRA adapters in the folders `lora` are merged into the weights in order.
    Raises: ImportRefused if there is no model at `path`.
    """
    path = Path(path)
    if path.is_dir() and (found := onnx_in(path)) is not None:
        path = found
    if path.suffix in LOADERS and path.is_file():
        return LOADERS[path.suffix](path, context, lora)
    if path.is_file():
        return load_gguf(path, context, lora)
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / CONFIG).is_file() else []
    if files and split_files(files[0]) != tuple(files) and len(files) > 1:
        names = ", ".join(file.name for file in files)
        problem = f"the folder holds several GGUF files: {names}"
        raise ImportRefused(problem, where=str(path), hint="name one of them")
    return load_gguf(files[0], context, lora) if files else load_folder(path, context, lora)
