"""Write a program as a GGUF file, which llama.cpp reads.

Weights on a grid that GGUF has (4 bits around 8: Q4_0, with an offset: Q4_1; 8 bits: Q8_0) are written as
they are; vectors are F32, other weights F16 or F32 as asked. What the file will say of the architecture is
read as an importer does and compared with the model's, so that none is written that means another model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from tokc.artifact.writer import file_written_aside
from tokc.errors import TokcError
from tokc.exporters.gguf_blocks import ENCODERS, kind_of
from tokc.exporters.gguf_vocabulary import vocabulary_metadata
from tokc.exporters.weights import Model
from tokc.importers.architecture import architecture_of
from tokc.importers.checkpoint import Grid, Weight, dequantized
from tokc.importers.families import (
    FAMILIES,
    GGUF_KEYS,
    GGUF_TENSORS,
    family_of,
)
from tokc.importers.family import Family
from tokc.importers.gguf import gguf_config, layer_tensors
from tokc.importers.gguf_file import GgufFile, Tensor
from tokc.importers.rope_divisors import GIVEN, llama3_divisors
from tokc.ir.program import Assets, ModelConfig

Array = npt.NDArray[Any]
Progress = Callable[[str], None]

EMPTY = np.empty(0, np.uint8)
WRITTEN_AS: Mapping[str, str] = {"mistral": "llama"}
ROPE_DIVISORS = "rope_freqs.weight"
FLOATS = ("epsilon", "freq_base", "freq_base_swa", "softcapping", "scale")
PLAIN: Mapping[str, Kind] = {"f16": Kind.F16, "f32": Kind.F32}
FILE_TYPES: Mapping[Kind, int] = {Kind.F32: 0, Kind.F16: 1, Kind.Q4_0: 2, Kind.Q4_1: 3, Kind.Q8_0: 7}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written: `load` returns u8[rows, bytes of a row], or f32 or f16 of `shape`."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(self.shape[-1] // block * size)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows."""
        return int(math.prod(self.shape[:-1]) * self.row_bytes)


def write_gguf(path: Path, model: Model, plain: str, progress: Progress = lambda _: None) -> None:
    """Write a file; matrices that lie on no grid become `plain`, f16 or f32.

    Raises: TokcError if GGUF cannot express the model; nothing is left at `path` then.
    """
    config, source = model.config, model.assets.source_config
    family = _written_as(family_of(source, str(path)))
    if not family.gguf:
        raise TokcError(
            f"models of family '{family.name}' have no form in GGUF that tokc writes",
            hint="export the model with --to hf",
        )
    tensors = [_tensor(name, weight, family, config, PLAIN[plain]) for name, weight in model.weights.items()]
    tensors += _divisors(source, config)
    metadata = _metadata(family, config, model.assets, tensors)
    _check(path, family, metadata, tensors, source)
    with file_written_aside(path, f"cannot write '{path}'") as aside:
        _write(aside, family.gguf[0], metadata, tensors, progress)


def _written_as(family: Family) -> Family:
    """Return the family under whose name llama.cpp knows a model; its windows are checked like all else."""
    name = WRITTEN_AS.get(family.name, family.name)
    return next(row for row in FAMILIES if row.name == name)


def _write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, object],
    tensors: list[GgufTensor],
    progress: Progress,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        packed = tensor.kind not in {Kind.F16, Kind.F32}
        shape = (*tensor.shape[:-1], tensor.row_bytes) if packed else tensor.shape
        dtype = np.dtype(np.uint8 if packed else np.float16 if tensor.kind is Kind.F16 else np.float32)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.nbytes, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            progress(f"write {tensor.name}")
            writer.write_tensor_data(np.ascontiguousarray(tensor.load()))
    finally:
        writer.close()


def _add(writer: Any, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _metadata(
    family: Family, config: ModelConfig, assets: Assets, tensors: list[GgufTensor]
) -> dict[str, object]:
    """Return the sizes, the rotation and the vocabulary; the architecture itself is the writer's."""
    name, source = family.gguf[0], {**family.defaults, **assets.source_config}
    source |= {"head_dim": config.head_dim, "num_key_value_heads": config.kv_heads}
    source.setdefault("rope_theta", _rope(source).get("rope_theta", 10_000.0))
    if not source.get("use_sliding_window", True):
        source.pop("sliding_window", None)
    kinds = [tensor.kind for tensor in tensors if len(tensor.shape) > 1]
    metadata: dict[str, object] = {
        "general.file_type": FILE_TYPES[max(set(kinds), key=kinds.count)],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    if assets.licence is not None:
        metadata["general.license"] = assets.licence
    for theirs, key in GGUF_KEYS.items():
        value = source.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            metadata[f"{name}.{theirs}"] = float(value) if theirs.endswith(FLOATS) else int(value)
    metadata[f"{name}.attention.value_length"] = config.head_dim
    metadata[f"{name}.rope.dimension_count"] = config.head_dim
    metadata[f"{name}.vocab_size"] = config.vocab
    return metadata | _scaling(name, source) | vocabulary_metadata(assets, name, config.vocab)


def _rope(source: Mapping[str, object]) -> Mapping[str, object]:
    """Return the parameters of the layers that attend to everything."""
    stated = source.get("rope_parameters") or source.get("rope_scaling") or {}
    assert isinstance(stated, Mapping), "the importer has read the parameters"
    full = stated.get("full_attention", stated)
    return full if isinstance(full, Mapping) else {}


def _scaling(name: str, source: Mapping[str, object]) -> dict[str, object]:
    rope = _rope(source)
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind in {"default", "llama3", GIVEN}:
        return {}
    if kind == "linear":
        factor = rope["factor"]
        assert isinstance(factor, int | float), "the importer has read the factor"
        return {f"{name}.rope.scaling.type": "linear", f"{name}.rope.scaling.factor": float(factor)}
    raise TokcError(
        f"a rotary embedding of type '{kind}' cannot be written as GGUF; default, linear and llama3 can",
        hint="export the model with --to hf",
    )


def _divisors(source: Mapping[str, object], config: ModelConfig) -> list[GgufTensor]:
    rope = _rope(source)
    kind, theta = rope.get("rope_type", rope.get("type")), rope.get("rope_theta", source.get("rope_theta"))
    if kind == "llama3":
        assert isinstance(theta, int | float), "the importer has read the base"
        values = llama3_divisors(rope, float(theta), config.head_dim)
    elif kind == GIVEN:
        values = np.asarray(rope[GIVEN], np.float32)
    else:
        return []
    return [GgufTensor(ROPE_DIVISORS, Kind.F32, values.shape, lambda: values)]


def _check(
    path: Path,
    family: Family,
    metadata: Mapping[str, object],
    tensors: list[GgufTensor],
    source: Mapping[str, object],
) -> None:
    """Refuse metadata that do not say what the model's own configuration does."""
    entries = {one.name: Tensor(one.name, one.shape, one.kind, EMPTY) for one in tensors}
    file = GgufFile(path, metadata, entries)
    again = architecture_of(family, gguf_config(file, family.gguf[0], family), None, str(path))
    wanted = architecture_of(family_of(source, str(path)), source_with_divisors(source), None, str(path))
    unlike = {"family", "config", "rope", "norm_offset"} | (
        set() if family.local_rope_theta is not None else {"local_rope"}
    )
    for name in [one.name for one in fields(wanted) if one.name not in unlike]:
        if getattr(again, name) != getattr(wanted, name):
            raise TokcError(
                f"the model's {name.replace('_', ' ')} cannot be written as GGUF: "
                f"{getattr(wanted, name)} would be read as {getattr(again, name)}",
                hint="export the model with --to hf",
            )


def source_with_divisors(source: Mapping[str, object]) -> Mapping[str, object]:
    """Return a configuration that can be read as one of a folder: divisors are no scaling there."""
    given = _rope(source).get("rope_type") == GIVEN
    return {**source, "rope_scaling": None} if given else source


def gguf_name(name: str, family: Family) -> str:
    """Return what GGUF calls a tensor.

    Raises: TokcError if it has no word for it.
    """
    stem, _, kind = name.rpartition(".")
    for ours, theirs in GGUF_TENSORS.items():
        if theirs == stem:
            return f"{ours}.{kind}"
    if stem.startswith("model.layers."):
        number, inner = stem.removeprefix("model.layers.").split(".", 1)
        for ours, theirs in layer_tensors(family).items():
            if theirs == inner:
                return f"blk.{number}.{ours}.{kind}"
    raise TokcError(f"tensor '{name}' has no name in GGUF", hint="export the model with --to hf")


def _tensor(name: str, weight: Weight, family: Family, config: ModelConfig, plain: Kind) -> GgufTensor:
    """Return a weight as GGUF has it: named, its rows in llama.cpp's order, on a grid if GGUF has it."""
    order = _row_order(name, weight.shape[0], family, config)
    kind = kind_of(weight, plain)
    if isinstance(weight, Grid) and kind in ENCODERS:
        encode = ENCODERS[kind]
        return GgufTensor(gguf_name(name, family), kind, weight.shape, lambda: _taken(encode(weight), order))
    dtype = np.float16 if kind is Kind.F16 else np.float32

    def load() -> Array:
        return _taken(dequantized(weight), order).astype(dtype)

    return GgufTensor(gguf_name(name, family), kind, weight.shape, load)


def _taken(rows: Array, order: Array | None) -> Array:
    return rows if order is None else rows[order]


def _row_order(name: str, rows: int, family: Family, config: ModelConfig) -> Array | None:
    """Return which of our rows each of the file's is, where a file interleaves the halves of a head."""
    if not family.permuted_gguf:
        return None
    for part, heads in ((".q_proj.", config.heads), (".k_proj.", config.kv_heads)):
        if part in name and rows == heads * config.head_dim:
            index = np.arange(rows, dtype=np.int64)
            return index.reshape(heads, 2, config.head_dim // 2).swapaxes(1, 2).reshape(-1)
    return None
