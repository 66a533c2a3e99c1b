"""A configuration and its family's row become everything that building the decoder needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokc.errors import ImportRefused
from tokc.importers.families import Activation, Config, Family, integer, number
from tokc.importers.rope import Rope, ropes_of
from tokc.ir.program import ModelConfig

DEFAULT_CONTEXT = 8192
ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True)
class Architecture:
    """State a decoder: `windows` in tokens, one a layer, 0 for full attention."""

    family: Family
    config: ModelConfig
    activation: Activation
    windows: tuple[int, ...]
    rope: Rope
    local_rope: Rope
    attention_scale: float
    norm_offset: float
    attention_bias: bool
    mlp_bias: bool

    def local(self, layer: int) -> bool:
        """Return whether a layer rotates by the local embedding."""
        return self.family.local_rope_theta is not None and self.windows[layer] > 0


def architecture_of(family: Family, given: Config, context: int | None, origin: str) -> Architecture:
    """Return the decoder that a Hugging Face configuration describes; `context` in tokens caps its positions.

    Raises: ImportRefused if a value is missing, contradictory or not supported.
    """
    config = {**family.defaults, **{key: value for key, value in given.items() if value is not None}}
    try:
        facts = _model_config(family, config, context)
        windows = family.windows(config, facts.layers)
        scalar = number(config, family.attention_scalar) if family.attention_scalar else facts.head_dim
    except ImportRefused as error:
        raise ImportRefused(error.problem, where=error.where or origin, hint=error.hint) from error
    _refuse_softcaps(config, origin)
    rope, local_rope = ropes_of(config, family.local_rope_theta, origin)
    return Architecture(
        family=family,
        config=facts,
        activation=_activation(family, config, origin),
        windows=windows,
        rope=rope,
        local_rope=local_rope,
        attention_scale=scalar**-0.5,
        norm_offset=family.norm_offset,
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _model_config(family: Family, config: Config, context: int | None) -> ModelConfig:
    hidden, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    kv_heads = integer(config, "num_key_value_heads", heads)
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise ImportRefused(
            f"{heads} attention heads cannot share {kv_heads} key-value heads", hint="correct config.json"
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
        context=_context(integer(config, "max_position_embeddings", 2048), context),
        norm_epsilon=number(config, "rms_norm_eps", 1e-6),
        tied_embedding=bool(config.get("tie_word_embeddings", False)),
        bos_token_id=_optional_id(config.get("bos_token_id")),
        eos_token_ids=_ids(config.get("eos_token_id")),
    )


def _context(trained: int, asked: int | None) -> int:
    if asked is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 0 < asked <= trained:
        raise ImportRefused(
            f"a context of {asked} tokens is out of range; the model was made for up to {trained}",
            hint=f"ask for a context from 1 to {trained} tokens",
        )
    return asked


def _activation(family: Family, config: Config, origin: str) -> Activation:
    name = config.get("hidden_activation") or config.get("hidden_act")
    if name is None:
        return family.activation
    if name not in ACTIVATIONS:
        raise ImportRefused(
            f"activation '{name}' is not supported; supported are {', '.join(ACTIVATIONS)}",
            where=origin,
            hint="choose another model",
        )
    return ACTIVATIONS[str(name)]


def _refuse_softcaps(config: Config, origin: str) -> None:
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise ImportRefused(
                f"'{key}' is {config[key]}, which is not supported", where=origin, hint="choose another model"
            )


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, list):
        return tuple(int(item) for item in value)
    return (value,) if isinstance(value, int) else ()


def _optional_id(value: object) -> int | None:
    return _ids(value)[0] if _ids(value) else None
