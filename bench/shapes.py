"""Models of known shapes without their weights: Hugging Face folders whose tensors are holes in a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 5e5,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
}


def sparse_folder(name: str, path: Path, layers: int | None = None) -> Path:
    """Write a model of a known shape, all of whose weights are zero and take no space; return `path`."""
    config = {**_LLAMA, **SHAPES[name]}
    if layers is not None:
        config["num_hidden_layers"] = layers
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    entries: dict[str, Any] = {}
    end = 0
    for tensor, shape in _tensors(config).items():
        start, end = end, end + 2 * _product(shape)
        entries[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def _tensors(config: Mapping[str, Any]) -> dict[str, list[int]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    heads, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    found = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = [config["vocab_size"], hidden]
    matrices = {
        "self_attn.q_proj": [heads, hidden],
        "self_attn.k_proj": [kv, hidden],
        "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, heads],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    if "num_experts" in config:
        inner = config["moe_intermediate_size"]
        matrices |= {"mlp.gate": [config["num_experts"], hidden]}
        matrices |= {"self_attn.q_norm": [dim], "self_attn.k_norm": [dim]}
    places = [f"mlp.experts.{expert}" for expert in range(config.get("num_experts", 0))] or ["mlp"]
    for place in places:
        matrices |= {f"{place}.{name}": [inner, hidden] for name in ("gate_proj", "up_proj")}
        matrices[f"{place}.down_proj"] = [hidden, inner]
    for layer in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
    return found


def _product(shape: list[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
