"""Write tiny transformers models as GGUF files, spelled and permuted as llama.cpp's converter does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_models import tiny_model

Kind = gguf.GGMLQuantizationType
SAME = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "smollm3",
    "granite",
    "olmo2",
    "phi3",
    "stablelm",
    "gpt2",
)
ARCHITECTURES = {
    **{name: name for name in SAME},
    "llama3": "llama",
    "llama_bias": "llama",
    "phi4": "phi3",
    "stablelm_parallel": "stablelm",
    "gpt_bigcode": "starcoder",
    "gpt_neox": "gptneox",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
}
PERMUTED = {"llama", "smollm3", "granite"}
GEMMAS = {"gemma2", "gemma3"}
LAYER_NORMS = {"stablelm", "gpt2", "starcoder", "gptneox"}
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
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"norm_topk_prob": True},
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


@dataclass(frozen=True)
class Layout:
    """Hold how a file has a parameter: names and arrays of the file, and the parameter of such arrays."""

    names: tuple[str, ...]
    to_file: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    from_file: Callable[..., np.ndarray]


def layout(name: str, architecture: str, config: Any) -> Layout:
    """Return how llama.cpp's converter writes a parameter."""
    if name.endswith("experts.gate_up_proj"):
        names = tuple(name.replace("gate_up_proj", f"{half}_proj.weight") for half in ("gate", "up"))
        return Layout(
            names, lambda a: tuple(np.split(a, 2, axis=1)), lambda *parts: np.concatenate(parts, axis=1)
        )
    if name.endswith("shared_expert_gate.weight"):
        return Layout((name,), lambda a: (a[0],), lambda a: a[None])
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return Layout((name,), lambda a: (np.ascontiguousarray(a.T),), lambda a: a.T)
    if ".query_key_value." in name:
        heads = config.num_attention_heads
        dim = config.hidden_size // heads

        def stacked(a: np.ndarray) -> tuple[np.ndarray]:
            return (a.reshape(heads, 3, dim, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape).copy(),)

        def interleaved(a: np.ndarray) -> np.ndarray:
            return a.reshape(3, heads, dim, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)

        return Layout((name,), stacked, interleaved)
    if architecture in PERMUTED and name.split(".")[-2] in {"q_proj", "k_proj"}:
        return Layout((name,), lambda a: (_permuted(a, name, config),), lambda a: unpermuted(a, name, config))
    spelled = f"{name}.weight" if name.endswith("experts.down_proj") else name
    one = np.float32(1) if architecture in GEMMAS and name.endswith("norm.weight") else np.float32(0)
    return Layout((spelled,), lambda a: (a + one,), lambda a: a - one)


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
        precise = array.ndim == 1 or name.endswith(("norm.weight", "mlp.gate.weight", "wpe.weight"))
        how, read = layout(name, architecture, config), []
        for spelled, rows in zip(how.names, how.to_file(array), strict=True):
            stored = Kind.F32 if precise or rows.ndim == 1 else asked
            random = k_blocks(rows.shape, stored, len(kept)) if stored in K_HALVES else None
            data = gguf.quantize(rows, stored) if random is None else random
            writer.add_tensor(gguf_name(spelled, architecture), data, raw_dtype=stored)
            read.append(gguf.dequantize(data, stored))
        kept[name] = how.from_file(*read)
    write_rotation(writer, family, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def write_rotation(writer: gguf.GGUFWriter, family: str, model: Any) -> None:
    """Write what is not the same for all frequencies."""
    if family == "llama3":
        writer.add_tensor("rope_freqs.weight", _divisors(model))
    if family == "phi4":
        rope = model.config.rope_parameters
        original = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        scale = model.config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))))
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)


def write_sizes(writer: gguf.GGUFWriter, architecture: str, config: Any) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_feed_forward_length(config.intermediate_size if not hasattr(config, "n_inner") else inner)
    writer.add_head_count(heads)
    if architecture == "starcoder":
        writer.add_head_count_kv(1)
    elif getattr(config, "num_key_value_heads", None):
        writer.add_head_count_kv(config.num_key_value_heads)
    if architecture in LAYER_NORMS:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_epsilon", None) or config.layer_norm_eps)
    else:
        writer.add_key_length(head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        full = rope.get("full_attention", rope)
        writer.add_rope_freq_base(full["rope_theta"])
        writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1)))
    if architecture in GEMMAS | {"phi3"}:
        writer.add_sliding_window(config.sliding_window or 0)
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
    write_experts(writer, config)
    for key, theirs in FACTORS.items():
        if getattr(config, key, None) is not None:
            writer.add_float32(f"{architecture}.{theirs}", getattr(config, key))


def write_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write how many experts there are and how wide, if there are any."""
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if count:
        writer.add_expert_count(count)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def gguf_name(name: str, architecture: str) -> str:
    """Return what llama.cpp's table calls a tensor."""
    known = {spelled: model for model, spelled in gguf.MODEL_ARCH_NAMES.items()}
    found = gguf.get_tensor_name_map(known[architecture], 64).get_name(name, (".weight", ".bias"))
    assert found is not None, f"the package has no name for '{name}'"
    return found


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
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _divisors(model: Any) -> np.ndarray:
    plain = 10000.0 ** -(np.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    return (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
