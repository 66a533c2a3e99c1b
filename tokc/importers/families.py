"""The model families that tokc reads, a row each.

What a row states is in `family.py`; what GGUF calls keys and tensors is in `gguf_names.py`.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from tokc.errors import ImportRefused
from tokc.importers.expert_keys import ExpertKeys
from tokc.importers.family import (
    Config,
    Family,
    alternating_windows,
    interleaved_windows,
    late_windows,
    most_rotated,
    none_rotated,
    same_window,
)
from tokc.importers.settings import (
    GPT2_KEYS,
    NEOX_KEYS,
    STABLELM_KEYS,
    bigcode_settings,
    gpt2_settings,
    neox_settings,
)

ADDING = "docs/adding-a-model.md says how to add a family"

GPT2_ROOTS = {
    "h": "model.layers",
    "wte": "model.embed_tokens",
    "wpe": "model.embed_positions",
    "ln_f": "model.norm",
}
GPT2_TENSORS = (
    *((f"transformer.{theirs}", ours) for theirs, ours in GPT2_ROOTS.items()),
    *GPT2_ROOTS.items(),  # the first checkpoints'
    ("ln_1", "input_layernorm"),
    ("ln_2", "post_attention_layernorm"),
    ("attn.c_attn", "self_attn.qkv_proj"),
    ("attn.c_proj", "self_attn.o_proj"),
    ("mlp.c_fc", "mlp.up_proj"),
    ("mlp.c_proj", "mlp.down_proj"),
)
NEOX_TENSORS = (
    ("gpt_neox.layers", "model.layers"),
    ("gpt_neox.embed_in", "model.embed_tokens"),
    ("gpt_neox.final_layer_norm", "model.norm"),
    ("embed_out", "lm_head"),
    ("attention.query_key_value", "self_attn.qkv_proj"),
    ("attention.dense", "self_attn.o_proj"),
    ("mlp.dense_h_to_4h", "mlp.up_proj"),
    ("mlp.dense_4h_to_h", "mlp.down_proj"),
)
MIXTRAL_TENSORS = (
    ("block_sparse_moe", "mlp"),
    ("w1", "gate_proj"),
    ("w3", "up_proj"),
    ("w2", "down_proj"),
)

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
        norm_places="around",
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
    Family(
        "gemma2",
        model_types=("gemma2",),
        architectures=("Gemma2ForCausalLM",),
        gguf=("gemma2",),
        activation="gelu_tanh",
        norm_offset=1.0,
        norm_places="around",
        scaled_embedding=True,
        attention_scalar="query_pre_attn_scalar",
        softcapped=True,
        windows=alternating_windows,
        defaults={
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 256_000,
            "max_position_embeddings": 8192,
            "query_pre_attn_scalar": 256,
            "rms_norm_eps": 1e-6,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "smollm3",
        model_types=("smollm3",),
        architectures=("SmolLM3ForCausalLM",),
        gguf=("smollm3",),
        permuted_gguf=True,
        rotations=most_rotated,
        windows=late_windows,
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    ),
    Family(
        "granite",
        model_types=("granite",),
        architectures=("GraniteForCausalLM",),
        gguf=("granite",),
        scaled=True,
        permuted_gguf=True,
    ),
    Family(
        "olmo2",
        model_types=("olmo2",),
        architectures=("Olmo2ForCausalLM",),
        gguf=("olmo2",),
        norm_places="after",
        wide_qk_norm=True,
        defaults={"rms_norm_eps": 1e-5},
    ),
    Family(
        "phi3",
        model_types=("phi3",),
        architectures=("Phi3ForCausalLM",),
        gguf=("phi3",),
        fused_qkv="stacked",
        fused_gate_up=True,
        windows=same_window,
        defaults={"rms_norm_eps": 1e-5},
    ),
    Family(
        "stablelm",
        model_types=("stablelm",),
        architectures=("StableLmForCausalLM",),
        gguf=("stablelm",),
        keys=STABLELM_KEYS,
        norm="layer",
        shared_norm=True,
        rotary_share=0.25,
        defaults={"rms_norm_eps": 1e-5},
        refused=("qk_layernorm",),
    ),
    Family(
        "gpt2",
        model_types=("gpt2",),
        architectures=("GPT2LMHeadModel",),
        gguf=("gpt2",),
        keys=GPT2_KEYS,
        settings=gpt2_settings,
        tensors=GPT2_TENSORS,
        fused_qkv="stacked",
        transposed=True,
        activation="gelu_tanh",
        gated=False,
        norm="layer",
        rotations=none_rotated,
        defaults={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
        refused=("scale_attn_by_inverse_layer_idx", "add_cross_attention"),
    ),
    Family(
        "gpt_bigcode",
        model_types=("gpt_bigcode",),
        architectures=("GPTBigCodeForCausalLM",),
        gguf=("starcoder",),
        gguf_silent={"multi_query": True},
        keys=GPT2_KEYS,
        settings=bigcode_settings,
        tensors=GPT2_TENSORS,
        fused_qkv="stacked",
        activation="gelu_tanh",
        gated=False,
        norm="layer",
        rotations=none_rotated,
        defaults={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
        refused=("add_cross_attention",),
    ),
    Family(
        "gpt_neox",
        model_types=("gpt_neox",),
        architectures=("GPTNeoXForCausalLM",),
        gguf=("gptneox",),
        keys=NEOX_KEYS,
        settings=neox_settings,
        tensors=NEOX_TENSORS,
        fused_qkv="interleaved",
        activation="gelu",
        gated=False,
        norm="layer",
        rotary_share=0.25,
        defaults={
            "attention_bias": True,
            "mlp_bias": True,
            "use_parallel_residual": True,
            "rms_norm_eps": 1e-5,
        },
    ),
    Family(
        "mixtral",
        model_types=("mixtral",),
        architectures=("MixtralForCausalLM",),
        gguf=("llama",),
        permuted_gguf=True,
        keys={"num_local_experts": "num_experts"},
        tensors=MIXTRAL_TENSORS,
        windows=same_window,
        experts=ExpertKeys(width="intermediate_size", normalize=True),
        defaults={"num_key_value_heads": 8, "num_experts": 8, "rms_norm_eps": 1e-5},
    ),
    Family(
        "qwen2_moe",
        model_types=("qwen2_moe",),
        architectures=("Qwen2MoeForCausalLM",),
        gguf=("qwen2moe",),
        gguf_silent={"norm_topk_prob": False},
        qkv_bias=True,
        windows=late_windows,
        experts=ExpertKeys(top_k=4, shared=True),
        defaults={"num_key_value_heads": 16, "sliding_window": 4096},
    ),
    Family(
        "qwen3_moe",
        model_types=("qwen3_moe",),
        architectures=("Qwen3MoeForCausalLM",),
        gguf=("qwen3moe",),
        gguf_silent={"norm_topk_prob": True},
        qk_norm=True,
        windows=late_windows,
        experts=ExpertKeys(top_k=8),
        defaults={"num_key_value_heads": 4, "sliding_window": 4096},
    ),
    Family(
        "olmoe",
        model_types=("olmoe",),
        architectures=("OlmoeForCausalLM",),
        gguf=("olmoe",),
        gguf_silent={"norm_topk_prob": False},
        wide_qk_norm=True,
        experts=ExpertKeys(width="intermediate_size", top_k=8),
        defaults={"rms_norm_eps": 1e-5},
        refused=("clip_qkv",),
    ),
)


def family_of(config: Config, origin: str) -> Family:
    """Return the row of a Hugging Face configuration.

    Raises: ImportRefused if no row names its architecture or model type; it names the nearest one.
    """
    listed = config.get("architectures")
    names = [str(name) for name in listed] if isinstance(listed, list) else []
    model_type = str(config.get("model_type", ""))
    for family in FAMILIES:
        if any(name in family.architectures for name in names) or (
            not names and model_type in family.model_types
        ):
            return family
    every = {name: family for family in FAMILIES for name in (*family.architectures, *family.model_types)}
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    asked = names[0] if names else model_type
    raise ImportRefused(
        f"unknown architecture '{asked}'; supported are {known}",
        where=origin,
        hint=_nearest(asked, model_type, every),
    )


def _nearest(asked: str, model_type: str, known: Mapping[str, Family]) -> str:
    """Say which row has the most similar name, if one has."""
    for name in (asked, model_type):
        close = get_close_matches(name, known, n=1, cutoff=0.75)
        if close:
            return f"the nearest family is '{known[close[0]].name}'; {ADDING}"
    return f"no row of tokc/importers/families.py is named alike; {ADDING}"


def gguf_family(architecture: str, origin: str, *, experts: bool = False) -> Family:
    """Return the row of a GGUF file's architecture, that of `experts` where two rows share a name.

    Raises: ImportRefused if no row names it; it names the nearest one.
    """
    found = [family for family in FAMILIES if architecture in family.gguf]
    if found:
        return next((family for family in found if (family.experts is not None) == experts), found[0])
    every = {name: family for family in FAMILIES for name in family.gguf}
    raise ImportRefused(
        f"unknown architecture '{architecture}'; supported in GGUF are {', '.join(every)}",
        where=origin,
        hint=_nearest(architecture, architecture, every),
    )
