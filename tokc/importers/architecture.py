"""A configuration and its family's row become everything that building the decoder needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokc.errors import ImportRefused
from tokc.importers.experts import Experts, experts_of
from tokc.importers.family import Activation, Config, Family, Fused, integer, number
from tokc.importers.rope import Rope, context_limits, ropes_of, rotated_elements
from tokc.importers.rope_scaling import Lengths
from tokc.ir.program import ModelConfig

DEFAULT_CONTEXT = 8192
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}
# The most of each that any model has by far; what is larger is an error, and would fill the memory.
SIZES: Mapping[str, int] = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1 << 24,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 26,
    "num_attention_heads": 1 << 20,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 40,
}
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
SCALES = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")


@dataclass(frozen=True)
class Scales:
    """State factors of values, what logits are divided by, and caps of scores and logits (0: none)."""

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    score_cap: float = 0.0
    logit_cap: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """State a decoder: `windows` in tokens, one a layer, 0 for full attention; `rotated` says which rotate.

    `trained` is the number of positions that the model was made for, `parallel` that attention and the
    feed-forward block read the same residual.
    """

    family: Family
    config: ModelConfig
    activation: Activation
    windows: tuple[int, ...]
    rotated: tuple[bool, ...]
    rope: Rope
    local_rope: Rope
    attention_scale: float
    scales: Scales
    norm_offset: float
    qkv_bias: bool
    attention_bias: bool
    mlp_bias: bool
    fused_qkv: Fused
    parallel: bool
    trained: int
    experts: Experts | None

    def local(self, layer: int) -> bool:
        """Return whether a layer rotates by the local embedding."""
        return self.family.local_rope_theta is not None and self.windows[layer] > 0

    @property
    def learned_positions(self) -> bool:
        """Return whether positions are rows of a table that are added to the embedding."""
        return not any(self.rotated)


def architecture_of(family: Family, given: Config, context: int | None, origin: str) -> Architecture:
    """Return the decoder that a Hugging Face configuration describes; `context` in tokens caps its positions.

    Raises: ImportRefused if a value is missing, contradictory or not supported.
    """
    # What is stated as null is off, or follows from other values; defaults are for what is not stated.
    silent = {key: value for key, value in family.defaults.items() if key not in given}
    stated = {**silent, **{key: value for key, value in given.items() if value is not None}}
    try:
        config = family.as_llama(stated)
        _refuse(family, config)
        return _architecture(family, config, context, origin)
    except ImportRefused as error:
        raise ImportRefused(error.problem, where=error.where or origin, hint=error.hint) from error


def _architecture(family: Family, config: Config, context: int | None, origin: str) -> Architecture:
    trained = integer(config, "max_position_embeddings", 2048)
    facts = _model_config(family, config, _context(*context_limits(config, trained), context))
    rotated = rotated_elements(config, family.rotary_share, facts.head_dim)
    lengths = Lengths(trained, facts.context, rotated)
    rope, local_rope = ropes_of(config, family.local_rope_theta, lengths, facts.head_dim, origin)
    return Architecture(
        family=family,
        config=facts,
        activation=_activation(family, config, origin),
        windows=family.windows(config, facts.layers),
        rotated=family.rotations(config, facts.layers),
        rope=rope,
        local_rope=local_rope,
        attention_scale=_attention_scale(family, config, facts.head_dim),
        scales=_scales(family, config, facts.hidden),
        norm_offset=family.norm_offset,
        qkv_bias=bool(config.get("qkv_bias", family.qkv_bias)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        fused_qkv="interleaved" if config.get("qkv_layout") == "interleaved" else family.fused_qkv,
        parallel=bool(config.get("use_parallel_residual", False)),
        trained=trained,
        experts=None if family.experts is None else experts_of(family.experts, config, facts.layers),
    )


def _attention_scale(family: Family, config: Config, head_dim: int) -> float:
    """Return what scores are multiplied by."""
    if family.scaled:
        return number(config, "attention_multiplier", 1.0)
    scalar = number(config, family.attention_scalar) if family.attention_scalar else head_dim
    return number(config, "attention_scale", scalar**-0.5)


def _scales(family: Family, config: Config, hidden: int) -> Scales:
    score_cap, logit_cap = (number(config, key, 0.0) for key in SOFTCAPS)
    if not family.scaled:
        embedding = hidden**0.5 if family.scaled_embedding else 1.0
        return Scales(embedding, score_cap=score_cap, logit_cap=logit_cap)
    embedding, residual, logits = (number(config, key, 1.0) for key in SCALES[:3])
    return Scales(embedding, residual, logits, score_cap, logit_cap)


def _refuse(family: Family, config: Config) -> None:
    """Refuse what a row does not heed, rather than compute something else."""
    off = [*family.refused, "use_bidirectional_attention"]
    off += [] if family.softcapped else SOFTCAPS
    found = [key for key in off if config.get(key)]
    if not family.scaled:
        found += [key for key in SCALES if config.get(key, 1.0) != 1.0]
    if found:
        raise ImportRefused(
            f"'{found[0]}' is {config[found[0]]}, which is not supported in family '{family.name}'",
            hint="choose another model; docs/adding-a-model.md says how to add what is missing",
        )


def _model_config(family: Family, config: Config, context: int) -> ModelConfig:
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ImportRefused(
            f"{heads} attention heads cannot share {kv_heads} key-value heads", hint="correct config.json"
        )
    for key, most in SIZES.items():
        if integer(config, key, 0) > most:
            raise ImportRefused(
                f"'{key}' is {config[key]}, more than any model has", hint="correct config.json"
            )
    return ModelConfig(
        family=family.name,
        hidden=hidden,
        layers=integer(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=integer(config, "head_dim", hidden // heads),
        intermediate=integer(config, "intermediate_size"),
        vocab=integer(config, "vocab_size"),
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        tied_embedding=bool(config.get("tie_word_embeddings", False)),
        bos_token_id=_optional_id(config.get("bos_token_id")),
        eos_token_ids=_ids(config.get("eos_token_id")),
    )


def _context(usual: int, limit: int, asked: int | None) -> int:
    if asked is None:
        return min(usual, DEFAULT_CONTEXT)
    if not 0 < asked <= limit:
        raise ImportRefused(
            f"a context of {asked} tokens is out of range; the model was made for up to {limit}",
            hint=f"ask for a context from 1 to {limit} tokens",
        )
    return asked


def _activation(family: Family, config: Config, origin: str) -> Activation:
    name = config.get("hidden_activation") or config.get("hidden_act")
    if name is None:
        return family.activation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ImportRefused(
            f"activation '{name}' is not supported; supported are {', '.join(ACTIVATIONS)}",
            where=origin,
            hint="choose another model",
        )
    return ACTIVATIONS[name]


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(int(item) for item in value)
    return (value,) if isinstance(value, int) else ()


def _optional_id(value: object) -> int | None:
    return _ids(value)[0] if _ids(value) else None
