"""A GGUF file becomes a Program: its metadata are read as the Hugging Face configuration they stand for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.checkpoint import Checkpoint, Dense, Weight, lazy
from tokc.importers.decoder import decoder_program
from tokc.importers.families import gguf_family
from tokc.importers.family import Config, Family, Fused, integer
from tokc.importers.gguf_file import GgufFile, Rows, Tensor
from tokc.importers.gguf_names import EXPERT_TENSORS, KEYS, hugging_face_name
from tokc.importers.gguf_tokenizer import gguf_texts
from tokc.importers.layouts import laid_out
from tokc.importers.lora import adapter_hashes, merge_adapters
from tokc.importers.rope import Rope
from tokc.importers.rope_divisors import scaling_of
from tokc.importers.rope_scaling import ORIGINAL
from tokc.ir.program import Assets, Program
from tokc.model_files import sha256

ROPE_DIVISORS = "rope_freqs.weight"
ROPE_FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}
SHARED_GATE = "mlp.shared_expert_gate.weight"
WITHOUT_WINDOWS = ("llama",)  # llama.cpp lets every layer attend to everything, whatever the file says
GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def load_gguf(path: Path, context: int | None = None, lora: Sequence[Path] = ()) -> Program:
    """Import a file; `context` in tokens caps the positions (default: the model's, at most 8192).

    The LoRA adapters in the folders `lora` are merged into the weights in order.
    Raises: ImportRefused if the file is damaged or of an unknown kind.
    """
    if not path.is_file():
        raise ImportRefused(f"there is no file '{path}'", hint="give a Hugging Face folder or a .gguf file")
    file = GgufFile.open(path)
    name = str(file.metadata.get("general.architecture", ""))
    family = gguf_family(name, str(path), experts=bool(file.metadata.get(f"{name}.expert_count")))
    config = gguf_config(file, name, family)
    architecture = replace(architecture_of(family, config, context, str(path)), norm_offset=0.0)
    architecture = _with_divisors(architecture, file)
    if lora:
        _refuse_adapters(family, str(path))
    weights = merge_adapters(_weights(file, architecture), lora)
    checkpoint = Checkpoint(str(path), laid_out(weights, as_filed(architecture), str(path)))
    assets = replace(_assets(file, lora), source_config=_source_config(config, family, architecture))
    return decoder_program(architecture, checkpoint, assets)


def as_filed(architecture: Architecture) -> Architecture:
    """Return how a GGUF file holds the weights: all of them [out, in], queries, keys and values stacked."""
    fused: Fused = "apart" if architecture.fused_qkv == "apart" else "stacked"
    family = replace(architecture.family, transposed=False)
    return replace(architecture, family=family, fused_qkv=fused)


def _refuse_adapters(family: Family, origin: str) -> None:
    """Refuse adapters made for weights that a file holds in another order or direction."""
    if family.transposed or family.fused_qkv == "interleaved" or family.tensors:
        raise ImportRefused(
            f"adapters cannot be merged into a GGUF file of family '{family.name}'",
            where=origin,
            hint="give the model's Hugging Face folder, whose weights they were trained on",
        )


def _source_config(config: Config, family: Family, architecture: Architecture) -> dict[str, object]:
    """Return the configuration as a Hugging Face folder states it, with Llama 3's scaling found again."""
    stated = {key: value for key, value in config.items() if value is not None}
    divisors = architecture.rope.divisors
    if divisors is not None:
        stated["rope_scaling"] = scaling_of(divisors, architecture.rope.theta)
    return {**stated, "architectures": [family.architectures[0]], "model_type": family.model_types[0]}


def gguf_config(file: GgufFile, name: str, family: Family) -> dict[str, object]:
    """Return the Hugging Face configuration that the metadata stand for."""
    metadata = file.metadata
    config: dict[str, object] = {
        key: metadata[f"{name}.{theirs}"] for theirs, key in KEYS.items() if f"{name}.{theirs}" in metadata
    }
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    config["eos_token_id"] = _stops(metadata)
    config["rope_scaling"] = _scaling(file, name)
    config |= _biases(file, family) | _partial_rotation(metadata, name, config, family)
    if name in WITHOUT_WINDOWS:
        config.pop("sliding_window", None)
    if "sliding_window" in config:
        config["use_sliding_window"] = True
    if family.attention_scalar is not None:
        config[family.attention_scalar] = _attention_scalar(config, family)
    return family.as_own({**config, **family.gguf_silent})


def _biases(file: GgufFile, family: Family) -> dict[str, object]:
    """Return which projections have biases, where the family does not say so."""
    found = {"attention_bias": "blk.0.attn_output.bias" in file.tensors}
    if family.experts is None:
        found["mlp_bias"] = "blk.0.ffn_down.bias" in file.tensors
    if "qkv_bias" in family.keys.values():
        found["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    return dict(found)


def _partial_rotation(
    metadata: Mapping[str, object], name: str, config: Config, family: Family
) -> dict[str, object]:
    """Return the part of a head that is rotated, where it is not what the family's files leave unsaid."""
    rotated, heads = metadata.get(f"{name}.rope.dimension_count"), integer(config, "num_attention_heads", 0)
    if rotated is None or not heads:
        return {}
    dim = integer(config, "head_dim", integer(config, "hidden_size", 0) // heads)
    count = integer({"rope.dimension_count": rotated}, "rope.dimension_count")
    if dim < 1 or count == int(dim * family.rotary_share):
        return {}
    share = count / dim
    # As the configuration is read, by rounding down.
    return {"partial_rotary_factor": share if int(dim * share) == count else math.nextafter(share, 1.0)}


def _attention_scalar(config: Mapping[str, object], family: Family) -> object:
    """Return what Gemma scales by, which GGUF files leave out: dim, but hidden / heads in the 27B models."""
    if config.get("num_hidden_layers") == GEMMA_27B_LAYERS.get(family.name):
        return int(str(config["hidden_size"])) // int(str(config["num_attention_heads"]))
    return config.get("head_dim", family.defaults["head_dim"])


def _stops(metadata: Mapping[str, object]) -> list[object]:
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    found = [metadata[key] for key in keys if metadata.get(key) is not None]
    return list(dict.fromkeys(found))


def _scaling(file: GgufFile, name: str) -> dict[str, object] | None:
    metadata = file.metadata
    if all(tensor in file.tensors for tensor in ROPE_FACTORS.values()):
        factors = {
            key: [float(one) for one in file.tensors[tensor].dequantized()]
            for key, tensor in ROPE_FACTORS.items()
        }
        factor = metadata.get(f"{name}.rope.scaling.attn_factor")
        return {
            "rope_type": "longrope",
            **factors,
            **({} if factor is None else {"attention_factor": factor}),
        }
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": metadata.get(f"{name}.rope.scaling.factor", 1.0)}
    original = metadata.get(f"{name}.rope.scaling.original_context_length")
    return scaling if original is None or kind == "linear" else {**scaling, ORIGINAL: original}


def _with_divisors(architecture: Architecture, file: GgufFile) -> Architecture:
    """Take the frequencies' own divisors if the file has them (Llama 3)."""
    tensor = file.tensors.get(ROPE_DIVISORS)
    if tensor is None:
        return architecture
    half = architecture.config.head_dim // 2
    if tensor.shape != (half,):
        raise ImportRefused(
            f"tensor '{ROPE_DIVISORS}' has shape {list(tensor.shape)}, the configuration asks for [{half}]",
            where=str(file.path),
            hint="fetch the file again",
        )
    divisors = tuple(float(value) for value in tensor.dequantized())
    return replace(architecture, rope=Rope(architecture.rope.theta, divisors=divisors))


def _weights(file: GgufFile, architecture: Architecture) -> dict[str, Weight]:
    named = (one for tensor in file.tensors.values() for one in _named(tensor, architecture))
    return dict(named)


def _named(tensor: Tensor, architecture: Architecture) -> Iterator[tuple[str, Weight]]:
    """Yield a tensor's weight under its Hugging Face name, those of each expert apart."""
    name = hugging_face_name(tensor.name, architecture.family)
    if name is None:
        return
    layer, _, part = name.removesuffix(".weight").rpartition(".")
    if part in EXPERT_TENSORS:
        for index, one in enumerate(tensor.matrices()):
            yield f"{layer}.mlp.experts.{index}.{EXPERT_TENSORS[part]}.weight", one.weight()
    elif name.endswith(SHARED_GATE) and len(tensor.shape) == 1:
        row = (1, *tensor.shape)
        yield name, Dense(lazy(lambda: tensor.dequantized().reshape(row), ir.DataType.FLOAT, row))
    else:
        yield name, tensor.weight(_row_order(tensor, architecture))


def _row_order(tensor: Tensor, architecture: Architecture) -> Rows | None:
    """Return where each row of q and k is found in a file that interleaves the halves of a head."""
    if not architecture.family.permuted_gguf:
        return None
    config = architecture.config
    for part, heads in (("attn_q.", config.heads), ("attn_k.", config.kv_heads)):
        if f".{part}" in tensor.name and tensor.shape[0] == heads * config.head_dim:
            rows = np.arange(tensor.shape[0], dtype=np.int64)
            return rows.reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return None


def _assets(file: GgufFile, lora: Sequence[Path]) -> Assets:
    texts = gguf_texts(file)
    licence = file.metadata.get("general.license")
    return Assets(
        tokenizer_json=texts.tokenizer_json,
        chat_template=texts.chat_template,
        special_tokens=texts.special_tokens,
        licence=str(licence) if licence is not None else None,
        provenance={path.name: sha256(path) for path in file.paths} | adapter_hashes(lora),
    )
