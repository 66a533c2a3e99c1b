"""Real exports of tiny models: a graph, its configuration, and the weights that it was made of."""

import shutil
from pathlib import Path

import onnx_ir as ir

FIXTURES = Path(__file__).parent / "fixtures"
EXPORTS = sorted(
    str(path.parent.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*/model.onnx")
)  # exporter/model


def weights_folder(export: str, path: Path) -> Path:
    """Make the Hugging Face folder that an export was made of."""
    path.mkdir(parents=True, exist_ok=True)
    for file in (*(FIXTURES / export).glob("*.json"), FIXTURES / export / "hf" / "model.safetensors"):
        shutil.copy(file, path)
    return path


def graph_folder(export: str, path: Path) -> Path:
    """Copy an export with its configuration, to be changed."""
    path.mkdir(parents=True, exist_ok=True)
    for file in (*(FIXTURES / export).glob("*.json"), FIXTURES / export / "model.onnx"):
        shutil.copy(file, path)
    return path


def changed_graph(export: str, path: Path) -> tuple[ir.Model, Path]:
    """Return a graph to change and where to save it, its configuration beside it."""
    folder = graph_folder(export, path)
    return ir.load(folder / "model.onnx"), folder / "model.onnx"
