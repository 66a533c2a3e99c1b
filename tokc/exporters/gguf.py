"""Write a program as a GGUF file, which llama.cpp reads.

Weights on a grid that GGUF has (4 bits around 8: Q4_0, with an offset: Q4_1; 8 bits: Q8_0) are written as
they are; vectors are F32, other weights F16 or F32 as asked. What the file will say of the architecture is
read as an importer does and compared with the model's, so that none is written that means another model.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from tokc.artifact.writer import file_written_aside
from tokc.errors import TokcError
from tokc.exporters.gguf_tensors import GgufTensor, gguf_tensors, rope_tensors
from tokc.exporters.gguf_vocabulary import vocabulary_metadata
from tokc.exporters.weights import Model
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.families import FAMILIES
from tokc.importers.family import Family
from tokc.importers.gguf import ROPE_FACTORS, gguf_config
from tokc.importers.gguf_file import GgufFile, Tensor
from tokc.importers.gguf_names import EPSILONS, KEYS
from tokc.importers.rope import rope_parameters
from tokc.importers.rope_divisors import GIVEN
from tokc.importers.rope_scaling import ORIGINAL
from tokc.importers.rope_scaling import kind_of as scaling_kind
from tokc.ir.program import Assets

Progress = Callable[[str], None]

EMPTY = np.empty(0, np.uint8)
WRITTEN_AS: Mapping[str, str] = {"mistral": "llama"}
LONGROPE = ("phi3",)  # whose factors llama.cpp reads
FLOATS = ("epsilon", "freq_base", "freq_base_swa", "softcapping", "scale")
BOOLEANS = ("use_parallel_residual",)
PLAIN: Mapping[str, Kind] = {"f16": Kind.F16, "f32": Kind.F32}
FILE_TYPES: Mapping[Kind, int] = {Kind.F32: 0, Kind.F16: 1, Kind.Q4_0: 2, Kind.Q4_1: 3, Kind.Q8_0: 7}


def write_gguf(path: Path, model: Model, plain: str, progress: Progress = lambda _: None) -> None:
    """Write a file; matrices that lie on no grid become `plain`, f16 or f32.

    Raises: TokcError if GGUF cannot express the model; nothing is left at `path` then.
    """
    wanted = model.architecture()
    family = _written_as(wanted.family)
    if not family.gguf:
        raise TokcError(
            f"models of family '{family.name}' have no form in GGUF that tokc writes",
            hint="export the model with --to hf",
        )
    written = replace(wanted, family=family)
    tensors = gguf_tensors(model.weights, written, PLAIN[plain])
    tensors += rope_tensors(model.assets.source_config, wanted.config.head_dim)
    metadata = _metadata(written, model.assets, tensors)
    _check(path, family, metadata, tensors, wanted)
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


def _metadata(architecture: Architecture, assets: Assets, tensors: list[GgufTensor]) -> dict[str, object]:
    """Return the sizes, the rotation and the vocabulary; the architecture itself is the writer's."""
    family, config = architecture.family, architecture.config
    name, source = family.gguf[0], {**family.defaults, **assets.source_config}
    source = {**source, **family.as_llama({key: one for key, one in source.items() if one is not None})}
    source |= {"head_dim": config.head_dim, "num_key_value_heads": config.kv_heads}
    source.setdefault("rope_theta", rope_parameters(source).get("rope_theta", 10_000.0))
    if architecture.experts is not None:
        source |= {
            "num_experts": architecture.experts.count,
            "num_experts_per_tok": architecture.experts.top_k,
        }
    if not source.get("use_sliding_window", True):
        source.pop("sliding_window", None)
    kinds = [tensor.kind for tensor in tensors if len(tensor.shape) > 1]
    metadata: dict[str, object] = {
        "general.file_type": FILE_TYPES[max(set(kinds), key=kinds.count)],
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
    }
    if assets.licence is not None:
        metadata["general.license"] = assets.licence
    metadata |= {f"{name}.{key}": value for key, value in _values(source, family).items()}
    metadata[f"{name}.attention.value_length"] = config.head_dim
    if not architecture.learned_positions:
        metadata[f"{name}.rope.dimension_count"] = architecture.rope.rotated or config.head_dim
    metadata[f"{name}.vocab_size"] = config.vocab
    return metadata | _scaling(name, source, architecture) | vocabulary_metadata(assets, name, config.vocab)


def _values(source: Mapping[str, object], family: Family) -> dict[str, object]:
    """Return what a configuration states, under GGUF's keys."""
    found: dict[str, object] = {}
    for theirs, key in KEYS.items():
        value = source.get(key)
        if theirs in BOOLEANS and key in source:
            found[theirs] = bool(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[theirs] = float(value) if theirs.endswith(FLOATS) else int(value)
    for norm, key in EPSILONS.items():
        if norm != family.norm:
            found.pop(key, None)
    if family.experts is None:
        found = {key: value for key, value in found.items() if not key.startswith("expert_")}
    return found


def _scaling(name: str, source: Mapping[str, object], architecture: Architecture) -> dict[str, object]:
    rope = rope_parameters(source)
    kind = scaling_kind(rope)
    if kind in {"default", "llama3", GIVEN}:
        return {}
    if kind == "linear":
        return {
            f"{name}.rope.scaling.type": "linear",
            f"{name}.rope.scaling.factor": float(str(rope["factor"])),
        }
    if kind == "longrope" and name in LONGROPE and architecture.rope.scaling is not None:
        return {
            f"{name}.rope.scaling.attn_factor": float(architecture.rope.scaling.attention_factor),
            f"{name}.rope.scaling.original_context_length": int(str(rope[ORIGINAL])),
        }
    raise TokcError(
        f"a rotary embedding of type '{kind}' cannot be written as GGUF for family "
        f"'{architecture.family.name}'; default, linear and llama3 can",
        hint="export the model with --to hf",
    )


def _check(
    path: Path,
    family: Family,
    metadata: Mapping[str, object],
    tensors: list[GgufTensor],
    wanted: Architecture,
) -> None:
    """Refuse metadata that do not say what the model's own configuration does."""
    entries = {one.name: _entry(one) for one in tensors}
    file = GgufFile(path, metadata, entries)
    again = architecture_of(family, gguf_config(file, family.gguf[0], family), None, str(path))
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


def _entry(tensor: GgufTensor) -> Tensor:
    """Return a tensor as an importer sees it, without data but where they are part of the configuration."""
    data = tensor.load() if tensor.name in ROPE_FACTORS.values() else EMPTY
    return Tensor(tensor.name, tensor.shape, tensor.kind, data.view(np.uint8))
