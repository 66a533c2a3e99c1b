"""What GGUF calls the values of a configuration and the tensors, beside what Hugging Face calls them.

Source: llama.cpp, gguf-py/gguf/constants.py and convert_hf_to_gguf.py.
"""

from collections.abc import Mapping

from tokc.importers.family import Family

# GGUF key without its architecture's prefix -> Hugging Face key, as Llama has it
KEYS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "attention.scale": "attention_multiplier",
    "use_parallel_residual": "use_parallel_residual",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
EPSILONS = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}

# GGUF tensor -> Hugging Face tensor, as Llama has it; in a layer both have a prefix
TENSORS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "position_embd": "model.embed_positions",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSORS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Where results are normed the norm before the feed-forward layer has another name.
SANDWICH_TENSORS: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED_TENSORS: Mapping[str, str] = {"ffn_up": "mlp.gate_up_proj"}
# GGUF tensor of all experts of a layer, [experts, rows, columns] -> the projection of each
EXPERT_TENSORS: Mapping[str, str] = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}


def layer_tensors(family: Family) -> Mapping[str, str]:
    """Return the tensors of a layer, GGUF's name to Hugging Face's."""
    return {
        **LAYER_TENSORS,
        **(SANDWICH_TENSORS if family.norm_places != "before" else {}),
        **(FUSED_TENSORS if family.fused_gate_up else {}),
    }


def hugging_face_name(name: str, family: Family) -> str | None:
    """Return a tensor's Hugging Face name; None if a decoder has no use for it."""
    stem, _, kind = name.rpartition(".")
    if stem in TENSORS:
        return f"{TENSORS[stem]}.{kind}"
    block, *inner = stem.split(".", 2)
    if block != "blk" or len(inner) != 2:
        return None
    layer, part = inner
    return f"model.layers.{layer}.{layer_tensors(family).get(part, part)}.{kind}"


def gguf_name(name: str, family: Family) -> str | None:
    """Return what GGUF calls a tensor; None if it has no word for it."""
    stem, _, kind = name.rpartition(".")
    for ours, theirs in TENSORS.items():
        if theirs == stem:
            return f"{ours}.{kind}"
    if stem.startswith("model.layers."):
        number, inner = stem.removeprefix("model.layers.").split(".", 1)
        for ours, theirs in layer_tensors(family).items():
            if theirs == inner:
                return f"blk.{number}.{ours}.{kind}"
    return None
