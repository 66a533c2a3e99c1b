"""Configurations of families that do not use Llama's names: their values under those names."""

from tokc.importers.family import Config, number

GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}


def _renamed(config: Config, names: dict[str, str]) -> dict[str, object]:
    return {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}


def gpt2_settings(config: Config) -> Config:
    """Read GPT-2's names; the feed-forward layer is four times as wide as the model where nothing is said."""
    stated = _renamed(config, GPT2_NAMES)
    if "intermediate_size" not in stated and "hidden_size" in stated:
        stated["intermediate_size"] = 4 * int(number(stated, "hidden_size"))
    stated |= {"num_key_value_heads": stated.get("num_attention_heads"), "head_dim": None}
    if config.get("scale_attn_weights", True) is False:
        stated["attention_scale"] = 1.0
    return stated


def bigcode_settings(config: Config) -> Config:
    """Read GPT-2's names; all heads share one of keys and values, or else each head's three lie together."""
    shared = bool(config.get("multi_query", True))
    return {
        **gpt2_settings(config),
        **({"num_key_value_heads": 1} if shared else {"qkv_layout": "interleaved"}),
    }


def neox_settings(config: Config) -> Config:
    """Read GPT-NeoX's names; every head has keys and values of its own."""
    names = {
        "layer_norm_eps": "rms_norm_eps",
        "rotary_pct": "partial_rotary_factor",
        "rotary_emb_base": "rope_theta",
    }
    return {**_renamed(config, names), "num_key_value_heads": config.get("num_attention_heads")}


def stablelm_settings(config: Config) -> Config:
    """Read StableLM's names."""
    names = {"layer_norm_eps": "rms_norm_eps", "use_qkv_bias": "qkv_bias"}
    return _renamed(config, names)
