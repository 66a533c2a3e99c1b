"""Tiny programs, taken as far as the XLA targets want them."""

from pathlib import Path

from tests.tiny_models import tiny_folder
from tokc.importers import import_model
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.targets.base import Precision
from tokc.targets.tpu.target import pipeline


def tiny_program(folder: Path, precision: Precision, passes: str | None = None, **sizes: int) -> Program:
    """Return a ragged tiny Llama."""
    model = tiny_folder("llama", folder / "model", num_hidden_layers=2, **sizes)
    return Pipeline.parse(passes or pipeline(precision)).run(import_model(model))
