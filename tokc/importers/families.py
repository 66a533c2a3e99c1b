"""The model families that tokc reads, a row each, and the rules that tell one configuration from another.

A row says how a family's decoder differs from Llama's. The values of a configuration (sizes, RoPE, windows)
are read by `architecture.py`; a GGUF file's keys are renamed to those of a Hugging Face configuration by
GGUF_KEYS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tokc.errors import ImportRefused

Activation = Literal["silu", "gelu_tanh"]
Config = Mapping[str, object]
WindowRule = Callable[[Config, int], tuple[int, ...]]

SLIDING = "sliding_attention"


def _listed(config: Config, layers: int) -> tuple[int, ...] | None:
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return None
    window = integer(config, "sliding_window", 0)
    if len(kinds) != layers:
        raise ImportRefused(
            f"'layer_types' lists {len(kinds)} layers of {layers}", hint="correct config.json"
        )
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


def no_windows(_: Config, layers: int) -> tuple[int, ...]:
    """Let every layer attend to everything before it."""
    return (0,) * layers


def same_window(config: Config, layers: int) -> tuple[int, ...]:
    """Give every layer the configuration's window, if there is one (Mistral)."""
    return (integer(config, "sliding_window", 0),) * layers


def late_windows(config: Config, layers: int) -> tuple[int, ...]:
    """Give the layers from `max_window_layers` on the window, if it is switched on (Qwen)."""
    if not config.get("use_sliding_window", False):
        return no_windows(config, layers)
    window, first = integer(config, "sliding_window", 0), integer(config, "max_window_layers", 28)
    return _listed(config, layers) or tuple(window if layer >= first else 0 for layer in range(layers))


def interleaved_windows(config: Config, layers: int) -> tuple[int, ...]:
    """Leave every sixth layer without a window (Gemma 3)."""
    window, every = integer(config, "sliding_window", 4096), integer(config, "sliding_window_pattern", 6)
    return _listed(config, layers) or tuple(
        0 if (layer + 1) % every == 0 else window for layer in range(layers)
    )


@dataclass(frozen=True)
class Family:
    """State how a family's decoder differs from Llama's.

    `norm_offset` is added to norm weights of Hugging Face files (GGUF files have it added);
    `attention_scalar` names the value whose inverse square root scales the scores, the head's width if None;
    `permuted_gguf` says that GGUF files store the rows of q and k in the order of interleaved rotation.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    gguf: tuple[str, ...] = ()
    activation: Activation = "silu"
    qk_norm: bool = False
    qkv_bias: bool = False
    norm_offset: float = 0.0
    sandwich_norms: bool = False
    scaled_embedding: bool = False
    local_rope_theta: float | None = None
    attention_scalar: str | None = None
    windows: WindowRule = no_windows
    defaults: Config = field(default_factory=dict)
    permuted_gguf: bool = False


FAMILIES: tuple[Family, ...] = (
    Family(
        "llama",
        model_types=("llama", "smollm2"),
        architectures=("LlamaForCausalLM",),
        gguf=("llama",),
        permuted_gguf=True,
    ),
    Family(
        "mistral",
        model_types=("mistral",),
        architectures=("MistralForCausalLM",),
        windows=same_window,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        "qwen2",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM",),
        gguf=("qwen2",),
        qkv_bias=True,
        windows=late_windows,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096},
    ),
    Family(
        "qwen3",
        model_types=("qwen3",),
        architectures=("Qwen3ForCausalLM",),
        gguf=("qwen3",),
        qk_norm=True,
        windows=late_windows,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
    ),
    Family(
        "gemma3",
        model_types=("gemma3_text", "gemma3"),
        architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        gguf=("gemma3",),
        activation="gelu_tanh",
        qk_norm=True,
        norm_offset=1.0,
        sandwich_norms=True,
        scaled_embedding=True,
        local_rope_theta=10_000.0,
        attention_scalar="query_pre_attn_scalar",
        windows=interleaved_windows,
        defaults={
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
        },
    ),
)

# GGUF key without its architecture's prefix -> Hugging Face key
GGUF_KEYS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}

# GGUF tensor -> Hugging Face tensor; in a layer both have a prefix
GGUF_TENSORS: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_LAYER_TENSORS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# With sandwich norms the norm before the feed-forward layer has another name.
GGUF_SANDWICH_TENSORS: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def family_of(config: Config, origin: str) -> Family:
    """Return the row of a Hugging Face configuration.

    Raises: ImportRefused if no row names its architecture or model type.
    """
    listed = config.get("architectures")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    model_type = str(config.get("model_type", ""))
    for family in FAMILIES:
        if any(name in family.architectures for name in names) or (
            not names and model_type in family.model_types
        ):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise ImportRefused(
        f"unknown architecture '{names[0] if names else model_type}'; supported are {known}",
        where=origin,
        hint="choose a model of a supported family",
    )


def gguf_family(architecture: str, origin: str) -> Family:
    """Return the row of a GGUF file's architecture.

    Raises: ImportRefused if no row names it.
    """
    for family in FAMILIES:
        if architecture in family.gguf:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.gguf)
    raise ImportRefused(
        f"unknown architecture '{architecture}'; supported in GGUF are {known}",
        where=origin,
        hint="choose a model of a supported family",
    )


def integer(config: Config, key: str, default: int | None = None) -> int:
    """Return an integer of a configuration; null counts as absent.

    Raises: ImportRefused if it is absent without a default, or no integer.
    """
    value = number(config, key, default)
    if value != int(value):
        raise ImportRefused(f"'{key}' is {value}, not a whole number", hint="correct config.json")
    return int(value)


def number(config: Config, key: str, default: float | None = None) -> float:
    """Return a number of a configuration; null counts as absent.

    Raises: ImportRefused if it is absent without a default, or no number.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ImportRefused(f"the configuration has no '{key}'", hint="fetch config.json again")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ImportRefused(f"'{key}' is '{value}', not a number", hint="correct config.json")
    return value
