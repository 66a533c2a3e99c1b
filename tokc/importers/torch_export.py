"""A torch.export program (.pt2) becomes a Program by way of torch's ONNX exporter."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.onnx import raised_program
from tokc.ir.program import OPSET, Program

EXPORTED = ".pt2"


def load_exported(path: Path, context: int | None = None, lora: Sequence[Path] = ()) -> Program:
    """Import a file that torch.export.save wrote, with config.json beside it; `context` in tokens.

    Raises: ImportRefused if torch or onnxscript is absent, torch cannot convert the file, or as `load_onnx`.
    """
    return raised_program(_converted(path), path, context, lora)


def _converted(path: Path) -> ir.Model:
    try:
        import onnxscript  # noqa: F401 torch asks for it late, and less clearly
        import torch
    except ImportError as error:
        raise ImportRefused(
            f"reading '{path.name}' needs torch and onnxscript: {error}",
            where=str(path),
            hint="install tokc's extra 'torch', or export the model to ONNX",
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            converted = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # torch raises errors of many kinds for a file that is none
        said = [*str(error).splitlines(), type(error).__name__][0]
        raise ImportRefused(
            f"torch {torch.__version__} cannot convert '{path.name}': {said}",
            where=str(path),
            hint="save the program with torch.export.save of the same version of torch",
        ) from error
    assert converted is not None, "torch.onnx.export returns a program unless it writes a file"
    return converted.model
