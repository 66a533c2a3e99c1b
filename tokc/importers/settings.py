"""Configurations of families that do not use Llama's names: theirs beside Llama's, and what they imply."""

from tokc.importers.family import Config, number

GPT2_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
NEOX_KEYS = {
    "layer_norm_eps": "rms_norm_eps",
    "rotary_pct": "partial_rotary_factor",
    "rotary_emb_base": "rope_theta",
}
STABLELM_KEYS = {"layer_norm_eps": "rms_norm_eps", "use_qkv_bias": "qkv_bias"}


def gpt2_settings(config: Config) -> Config:
    """Read GPT-2's; the feed-forward layer is four times as wide as the model where nothing is said."""
    stated: dict[str, object] = {"num_key_value_heads": config.get("num_attention_heads"), "head_dim": None}
    if config.get("n_inner") is None and config.get("hidden_size") is not None:
        stated["intermediate_size"] = 4 * int(number(config, "hidden_size"))
    if config.get("scale_attn_weights", True) is False:
        stated["attention_scale"] = 1.0
    return stated


def bigcode_settings(config: Config) -> Config:
    """Read as GPT-2's; all heads share one of keys and values, or else each head's three lie together."""
    shared = bool(config.get("multi_query", True))
    return {
        **gpt2_settings(config),
        **({"num_key_value_heads": 1} if shared else {"qkv_layout": "interleaved"}),
    }


def neox_settings(config: Config) -> Config:
    """Give every head keys and values of its own."""
    return {"num_key_value_heads": config.get("num_attention_heads")}
