"""Write a program as a Hugging Face folder: config.json, safetensors, tokenizer, chat template.

Weights are dequantized to the type asked for, or, with `packed`, the projections that lie on a symmetric grid
keep their codes in compressed-tensors' format `pack-quantized`, which transformers and vLLM read.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.exporters.folder import folder_texts, new_folder
from tokc.exporters.layouts import file_weights
from tokc.exporters.weights import Model
from tokc.importers.checkpoint import Grid, Weight, dequantized, static
from tokc.importers.family import Family

Array = npt.NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plain:
    """Name a floating-point type in config.json, in safetensors and in numpy."""

    config: str
    safetensors: str
    dtype: npt.DTypeLike


PLAIN: Mapping[str, Plain] = {
    "f32": Plain("float32", "F32", np.float32),
    "f16": Plain("float16", "F16", np.float16),
    "bf16": Plain("bfloat16", "BF16", ml_dtypes.bfloat16),
}
WORD = 32  # bits
ALIGNMENT = 8  # bytes


@dataclass(frozen=True)
class FileTensor:
    """A tensor to be written; `load` makes it when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    load: Callable[[], Array]


def write_folder(
    folder: Path, model: Model, plain: str, *, packed: bool = False, progress: Progress = lambda _: None
) -> list[str]:
    """Write a folder and return its files; `plain` (f32, f16, bf16) is the type of what is not `packed`.

    Raises: TokcError if the model cannot be expressed or the folder exists; nothing half-written is left.
    """
    architecture = model.architecture()
    family, weights = architecture.family, file_weights(model.weights, architecture)
    groups = _groups(weights) if packed else {}
    tensors = [
        tensor for name, weight in weights.items() for tensor in _tensors(name, weight, family, plain, groups)
    ]
    stated = {"quantization_config": quantization_config(groups)} if groups else {}
    texts = folder_texts(model, dtype=PLAIN[plain].config, **stated)
    with new_folder(folder) as aside:
        for name, text in texts.items():
            (aside / name).write_text(text, encoding="utf-8")
        _write_safetensors(aside / "model.safetensors", tensors, progress)
    return sorted([*texts, "model.safetensors"])


@dataclass(frozen=True)
class Scheme:
    """State the grid of a projection: bits of a code and columns a scale."""

    bits: int
    group: int


def _groups(weights: Mapping[str, Weight]) -> dict[str, Scheme]:
    """Return the projections whose codes are kept, by weight name."""
    return {
        name: Scheme(8 if weight.q.dtype == ir.DataType.INT8 else 4, weight.block_size)
        for name, weight in weights.items()
        if isinstance(weight, Grid)
        and name.endswith("_proj.weight")
        and weight.offset is None
        and weight.shape[1] % weight.block_size == 0
        and weight.shape[1] % WORD == 0
    }


def quantization_config(groups: Mapping[str, Scheme]) -> dict[str, object]:
    """Return what config.json says of layers in `pack-quantized`."""
    schemes = dict.fromkeys(groups.values())
    stated = {
        f"group_{index}": {
            "targets": [name.removesuffix(".weight") for name, one in groups.items() if one == scheme],
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": scheme.group,
            },
        }
        for index, scheme in enumerate(schemes)
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": stated,
        "ignore": ["lm_head"],
    }


def _tensors(
    name: str, weight: Weight, family: Family, plain: str, groups: Mapping[str, Scheme]
) -> Iterator[FileTensor]:
    """Yield what is written of a weight: itself, or its codes, scales and shape."""
    if name in groups and isinstance(weight, Grid):
        yield from _packed_tensors(name.removesuffix(".weight"), weight, groups[name])
        return
    kind = PLAIN[plain]
    offset = np.float32(family.norm_offset if name.endswith("norm.weight") else 0.0)

    def load() -> Array:
        return (dequantized(weight) - offset).astype(kind.dtype)

    size = int(np.prod(weight.shape, dtype=np.int64)) * np.dtype(kind.dtype).itemsize
    yield FileTensor(name, kind.safetensors, weight.shape, size, load)


def _packed_tensors(module: str, weight: Grid, scheme: Scheme) -> Iterator[FileTensor]:
    rows, columns = weight.shape
    count, groups = columns * scheme.bits // WORD, static(weight.scale)[1]

    def words() -> Array:
        middle = (1 << scheme.bits - 1) - weight.zero_point
        codes = (weight.q.numpy().astype(np.int16) + np.int16(middle)).astype(np.uint32)
        split = codes.reshape(rows, count, WORD // scheme.bits)
        shifts = np.arange(0, WORD, scheme.bits, dtype=np.uint32)
        joined: Array = np.bitwise_or.reduce(split << shifts, axis=2)
        return joined.view(np.int32)

    yield FileTensor(f"{module}.weight_packed", "I32", (rows, count), 4 * rows * count, words)
    yield FileTensor(
        f"{module}.weight_scale",
        "F32",
        (rows, groups),
        4 * rows * groups,
        lambda: weight.scale.numpy().astype(np.float32),
    )
    yield FileTensor(f"{module}.weight_shape", "I64", (2,), 16, lambda: np.array(weight.shape, np.int64))


def _write_safetensors(path: Path, tensors: list[FileTensor], progress: Progress) -> None:
    """Write tensors one after another, one at a time in memory."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors:
            progress(f"write {tensor.name}")
            data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
            assert data.nbytes == tensor.nbytes, f"'{tensor.name}' has another size than was announced"
            file.write(data.data)
