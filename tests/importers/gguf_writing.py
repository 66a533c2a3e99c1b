"""Write tiny transformers models as GGUF files, spelled and permuted as llama.cpp's converter does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_models import tiny_model
from tokc.importers.families import GGUF_LAYER_TENSORS, GGUF_SANDWICH_TENSORS, GGUF_TENSORS

Kind = gguf.GGMLQuantizationType
SAME = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "granite", "olmo2")
ARCHITECTURES = {**{name: name for name in SAME}, "llama3": "llama"}
PERMUTED = {"llama", "smollm3", "granite"}
GEMMAS = {"gemma2", "gemma3"}
RESULTS_NORMED = GEMMAS | {"olmo2"}
FACTORS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attention_multiplier": "attention.scale",
}


# GGUF files leave these out, so they are what the family's row says.
GGUF_SIZES = {
    "gemma3": {"num_hidden_layers": 7, "layer_types": None, "query_pre_attn_scalar": 32},
    "gemma2": {"query_pre_attn_scalar": 32},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layers": None},
}


def gguf_model(family: str, **overrides: object) -> Any:
    sizes = {"qwen2": {"use_sliding_window": False}}.get(family, {})
    return tiny_model(family, **{**GGUF_SIZES.get(family, {}), **sizes, **overrides})


K_HALVES = {Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}  # where a block's fp16 numbers lie


def k_blocks(shape: tuple[int, ...], kind: Kind, seed: int) -> np.ndarray:
    """Return random blocks of a type that the gguf package cannot write, of the size of a layer's weights."""
    rows, columns = shape
    rng, (block, size) = np.random.default_rng(seed), gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for at, step in zip(K_HALVES[kind], (4e-3, 3e-2) if kind is Kind.Q4_K else (1e-3,), strict=True):
        half = np.float16(step * columns**-0.5).reshape(1).view(np.uint8)
        data[:, :, at : at + 2] = half
    return data.reshape(rows, -1)


def write_gguf(
    model: Any, family: str, path: Path, kind: Kind, kinds: Callable[[str], Kind] | None = None
) -> dict[str, np.ndarray]:
    """Write a model, its matrices in `kind`; return its weights as the file expresses them.

    `kinds` gives the type by tensor; matrices of K types are random and not the model's.
    """
    architecture, config = ARCHITECTURES[family], model.config
    writer = gguf.GGUFWriter(path, architecture)
    write_sizes(writer, architecture, config)
    kept: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        asked = kind if kinds is None else kinds(name)
        stored = asked if array.ndim == 2 and not name.endswith("norm.weight") else Kind.F32
        rows = _permuted(array, name, config) if architecture in PERMUTED else array
        if architecture in GEMMAS and name.endswith("norm.weight"):
            rows = rows + np.float32(1)
        random = k_blocks(rows.shape, stored, len(kept)) if stored in K_HALVES else None
        data = gguf.quantize(rows, stored) if random is None else random
        writer.add_tensor(gguf_name(name, architecture), data, raw_dtype=stored)
        if random is None:
            kept[name] = gguf.dequantize(gguf.quantize(array, stored), stored)
        else:
            permuted = architecture in PERMUTED
            values = gguf.dequantize(random, stored)
            kept[name] = unpermuted(values, name, config) if permuted else values
    if family == "llama3":
        writer.add_tensor("rope_freqs.weight", _divisors(model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def write_sizes(writer: gguf.GGUFWriter, architecture: str, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") and config.head_dim else 16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture in GEMMAS:
        writer.add_sliding_window(config.sliding_window)
    for key, theirs in FACTORS.items():
        if getattr(config, key, None) is not None:
            writer.add_float32(f"{architecture}.{theirs}", getattr(config, key))


def gguf_name(name: str, architecture: str) -> str:
    """Return what a GGUF file calls a tensor."""
    names = {**GGUF_LAYER_TENSORS, **(GGUF_SANDWICH_TENSORS if architecture in RESULTS_NORMED else {})}
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, inner = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{next(ours for ours, theirs in names.items() if theirs == inner)}.{kind}"
    return f"{next(ours for ours, theirs in GGUF_TENSORS.items() if theirs == stem)}.{kind}"


def _permuted(array: np.ndarray, name: str, config: Any) -> np.ndarray:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return array
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(array.shape))


def unpermuted(array: np.ndarray, name: str, config: Any) -> np.ndarray:
    """Return the rows of q and k as transformers orders them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2]
    )
    if heads is None:
        return array
    return array.reshape(heads, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)


def _divisors(model: Any) -> np.ndarray:
    plain = 10000.0 ** -(np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    return (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
