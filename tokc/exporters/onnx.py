"""Write a program as an ONNX folder: the decoder with its cache as inputs and outputs, as Optimum names them.

Every node is of the standard, or of a function over nodes of the standard that the file brings along. Weights
on a grid keep their codes and are dequantized in the graph; the others are f32.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokc.exporters.folder import folder_texts, new_folder
from tokc.exporters.layouts import decoder_weights
from tokc.exporters.weights import Model
from tokc.importers.checkpoint import Checkpoint
from tokc.importers.decoder import decoder_program
from tokc.ir.execute import save_onnx

GRAPH = "model.onnx"


def write_onnx(folder: Path, model: Model, progress: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write a folder with a graph [batch, seq], its weights beside it, and return the files.

    Raises: TokcError if config.json has no word for the model or the folder exists; nothing half-written is
    left.
    """
    architecture = model.architecture(model.config.context)
    weights = decoder_weights(model.weights, architecture)
    # The weights of norms have the family's offset added already.
    built = replace(architecture, norm_offset=0.0)
    texts = folder_texts(model, dtype="float32")
    program = decoder_program(built, Checkpoint(str(folder), weights), model.assets)
    with new_folder(folder) as aside:
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        progress(f"write {GRAPH}")
        save_onnx(program, aside / GRAPH)
        return sorted(path.name for path in aside.iterdir())
