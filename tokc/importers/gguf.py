"""A GGUF file becomes a Program: its metadata are read as the Hugging Face configuration they stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.checkpoint import Checkpoint, Weight
from tokc.importers.decoder import decoder_program
from tokc.importers.families import (
    GGUF_KEYS,
    GGUF_LAYER_TENSORS,
    GGUF_SANDWICH_TENSORS,
    GGUF_TENSORS,
    gguf_family,
)
from tokc.importers.family import Config, Family
from tokc.importers.gguf_file import GgufFile, Rows, Tensor
from tokc.importers.gguf_tokenizer import gguf_texts
from tokc.importers.lora import adapter_hashes, merge_adapters
from tokc.importers.rope import Rope
from tokc.importers.rope_divisors import scaling_of
from tokc.ir.program import Assets, Program
from tokc.model_files import sha256

ROPE_DIVISORS = "rope_freqs.weight"
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
    family = gguf_family(name, str(path))
    config = gguf_config(file, name, family)
    architecture = replace(architecture_of(family, config, context, str(path)), norm_offset=0.0)
    architecture = _with_divisors(architecture, file)
    checkpoint = Checkpoint(str(path), merge_adapters(_weights(file, architecture), lora))
    assets = replace(_assets(file, lora), source_config=_source_config(config, family, architecture))
    return decoder_program(architecture, checkpoint, assets)


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
        key: metadata[f"{name}.{theirs}"]
        for theirs, key in GGUF_KEYS.items()
        if f"{name}.{theirs}" in metadata
    }
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    config["eos_token_id"] = _stops(metadata)
    config["rope_scaling"] = _scaling(metadata, name)
    config["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    if "sliding_window" in config:
        config["use_sliding_window"] = True
    if family.attention_scalar is not None:
        config[family.attention_scalar] = _attention_scalar(config, family)
    return config


def _attention_scalar(config: Mapping[str, object], family: Family) -> object:
    """Return what Gemma scales by, which GGUF files leave out: dim, but hidden / heads in the 27B models."""
    if config.get("num_hidden_layers") == GEMMA_27B_LAYERS.get(family.name):
        return int(str(config["hidden_size"])) // int(str(config["num_attention_heads"]))
    return config.get("head_dim", family.defaults["head_dim"])


def _stops(metadata: Mapping[str, object]) -> list[object]:
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    found = [metadata[key] for key in keys if metadata.get(key) is not None]
    return list(dict.fromkeys(found))


def _scaling(metadata: Mapping[str, object], name: str) -> dict[str, object] | None:
    kind = metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": metadata.get(f"{name}.rope.scaling.factor", 1.0)}


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
    weights: dict[str, Weight] = {}
    for tensor in file.tensors.values():
        name = _their_name(tensor.name, architecture.family)
        if name is not None:
            weights[name] = tensor.weight(_row_order(tensor, architecture))
    return weights


def _their_name(name: str, family: Family) -> str | None:
    """Return a tensor's Hugging Face name; None if a decoder has no use for it."""
    stem, _, kind = name.rpartition(".")
    if stem in GGUF_TENSORS:
        return f"{GGUF_TENSORS[stem]}.{kind}"
    if not stem.startswith("blk."):
        return None
    _, layer, inner = stem.split(".", 2)
    return f"model.layers.{layer}.{layer_tensors(family).get(inner, inner)}.{kind}"


def layer_tensors(family: Family) -> Mapping[str, str]:
    """Return the tensors of a layer, GGUF's name to Hugging Face's; norms behind sublayers have their own."""
    return (
        GGUF_LAYER_TENSORS
        if family.norm_places == "before"
        else {**GGUF_LAYER_TENSORS, **GGUF_SANDWICH_TENSORS}
    )


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
