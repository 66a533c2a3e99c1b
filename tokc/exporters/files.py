"""From a model's files, through passes, or from an artifact, to another program's files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokc.errors import UnknownOption
from tokc.exporters.artifact import artifact_model
from tokc.exporters.gguf import write_gguf
from tokc.exporters.hugging_face import write_folder
from tokc.exporters.onnx import write_onnx
from tokc.exporters.weights import Model
from tokc.importers import import_model
from tokc.importers.mapping import release_pages
from tokc.pipeline import Pipeline

DTYPES = {
    "gguf": ("int4", "int8", "f16", "f32"),
    "hf": ("int4", "int8", "bf16", "f16", "f32"),
    "onnx": ("int4", "int8", "f32"),
}
QUANTIZED = {
    "int4": "fuse-linear,quantize-weights{bits=4 head_bits=8}",
    "int8": "fuse-linear,quantize-weights{bits=8 head_bits=8}",
}
MANIFEST = "manifest.json"
PLAIN = "f16"  # of what no pass has quantized


@dataclass(frozen=True)
class Export:
    """What to write: a model as `to` (gguf, hf or onnx), its weights of `dtype` or as `passes` make them."""

    model: Path
    to: str
    dtype: str
    passes: str | None = None
    lora: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a type that the format does not have."""
        if self.dtype not in DTYPES[self.to]:
            known = ", ".join(DTYPES[self.to])
            raise UnknownOption(f"unknown dtype '{self.dtype}' of {self.to}; choose from {known}")

    @property
    def pipeline(self) -> str:
        """Return the passes that run, none for plain weights."""
        return self.passes or QUANTIZED.get(self.dtype, "")

    def write(self, out: Path, progress: Callable[[str], None] = lambda _: None) -> list[Path]:
        """Write `out`, a file or a folder, and return the files.

        Raises: TokcError of the stage that refused; nothing half-written is left.
        """

        def say(what: str) -> None:
            release_pages()
            progress(what)

        model = self._built(say) if (self.model / MANIFEST).is_file() else self._imported(say)
        plain = PLAIN if self.dtype in QUANTIZED else self.dtype
        if self.to == "gguf":
            write_gguf(out, model, plain, say)
            return [out]
        if self.to == "onnx":
            return [out / name for name in write_onnx(out, model, say)]
        names = write_folder(out, model, plain, packed=bool(self.pipeline), progress=say)
        return [out / name for name in names]

    def _imported(self, say: Callable[[str], None]) -> Model:
        say(f"import {self.model}")
        program = import_model(self.model, lora=self.lora)
        if self.pipeline:
            return Model.of(Pipeline.parse(self.pipeline).run(program))
        return Model.of(program).dequantized()

    def _built(self, say: Callable[[str], None]) -> Model:
        """Return what an artifact holds: its grids are the export's, for `dtype` int4 and int8 alike."""
        if self.passes is not None or self.lora:
            raise UnknownOption("--passes and --lora are for models; an artifact's weights are what they are")
        say(f"unpack {self.model}")
        model = artifact_model(self.model)
        return model if self.dtype in QUANTIZED else model.dequantized()
