"""From a model's files to a Program."""

from tokc.importers.folder import load_folder
from tokc.importers.gguf import load_gguf
from tokc.importers.model import import_model

__all__ = ["import_model", "load_folder", "load_gguf"]
