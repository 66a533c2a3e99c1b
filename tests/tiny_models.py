"""Tiny random models of every family, as Hugging Face folders; knows nothing of tokc."""

from copy import deepcopy
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.5 + 0.4 * i for i in range(12)],
    "original_max_position_embeddings": 64,
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 128, "num_attention_heads": 2}
TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
# family -> (model type, what differs from SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "tie_word_embeddings": True}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 3,
                          "hidden_size": 96}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 48,
                               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "gemma2": ("gemma2", {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 48,
                          "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True, "no_rope_layers": [1, 0, 1]}),
    "granite": ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.5,
                            "attention_multiplier": 0.15, "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi4": ("phi3", {**TWO_HEADS, "rope_parameters": LONGROPE, "tie_word_embeddings": True,
                      "original_max_position_embeddings": 64}),
    "stablelm": ("stablelm", {**TWO_HEADS, "use_qkv_bias": True}),
    "stablelm_parallel": ("stablelm", {**TWO_HEADS, "use_parallel_residual": True}),
    "gpt2": ("gpt2", GPT2_SIZES),
    "gpt_bigcode": ("gpt_bigcode", GPT2_SIZES),
    "gpt_neox": ("gpt_neox", TWO_HEADS),
    "gpt_neox_serial": ("gpt_neox", {**TWO_HEADS, "use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                                "shared_expert_intermediate_size": 64, "mlp_only_layers": [1]}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3,
                                "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "olmoe": ("olmoe", {"hidden_size": 128, "num_experts": 4, "num_experts_per_tok": 2,
                        "intermediate_size": 32}),
}  # fmt: skip


def tiny_model(family: str, *, seed: int = 0, **overrides: Any) -> Any:
    """Return a transformers model with random weights, norms and biases included."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, differences = FAMILIES[family]
    config = AutoConfig.for_model(model_type, **deepcopy({**SIZES, **differences, **overrides}))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def tiny_folder(
    family: str, path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **overrides: Any
) -> Path:
    """Save a tiny model to a folder and return the folder; `shard` limits a weight file's size."""
    import torch

    model = tiny_model(family, seed=seed, **overrides).to(getattr(torch, dtype))
    model.save_pretrained(path, max_shard_size=shard)
    return path
