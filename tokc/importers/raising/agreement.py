"""Refuse a graph that computes other than its configuration says."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tokc.errors import ImportRefused
from tokc.importers.raising.facts import Decoder, Heads, Layer, differences
from tokc.importers.raising.names import named_refs

HINT = "take the configuration that the model was exported with"
# A fact's name -> what a configuration calls it
SETTINGS = {
    "epsilon": "rms_norm_eps",
    "scale": "the attention's scale",
    "mask": "which tokens a query sees (sliding_window, layer_types)",
    "cos": "the rotary angles (rope_theta, rope_scaling)",
    "sin": "the rotary angles (rope_theta, rope_scaling)",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "activation": "hidden_act",
    "partner": "which elements of a head are rotated (partial_rotary_factor)",
    "softcap": "attn_logit_softcapping",
    "logits_cap": "final_logit_softcapping",
    "parallel": "use_parallel_residual",
}


def in_order(decoder: Decoder, order: Sequence[int]) -> Decoder:
    """Return a decoder that stores the elements of its q and k heads in an `order`, as if it did not."""

    def heads(read: Heads) -> Heads:
        rotation = read.rotation
        return read if rotation is None else replace(read, rotation=rotation.reordered(order))

    def layers() -> Iterator[Layer]:
        for layer in decoder.layers:
            attention = layer.attention
            yield replace(layer, attention=replace(attention, q=heads(attention.q), k=heads(attention.k)))

    return replace(decoder, layers=tuple(layers()))


def refuse_layers(found: int, stated: int, origin: str, config: str) -> None:
    """Raise ImportRefused if a configuration states another number of layers than the graph has."""
    if found != stated:
        problem = f"the graph has {found} attention layers, the configuration states {stated}"
        raise ImportRefused(problem, where=f"{origin}; {config}", hint=HINT)


def refuse_differences(graph: Decoder, built: Decoder, last: int, origin: str, config: str) -> None:
    """Raise ImportRefused at the first fact of a graph that the decoder built of its configuration lacks.

    `last` is the sample's last position.
    """
    for path, found, stated in differences(graph, built, last):
        name = path.rsplit(", ", 1)[-1]
        raise ImportRefused(
            f"{SETTINGS.get(name, name)}: the graph has {_shown(found)}, the configuration {_shown(stated)}",
            where=f"{origin}, {path}; {config}",
            hint=HINT,
        )
    for name, ref in named_refs(built).items():
        stored = "model.embed_tokens.weight" if name == "lm_head.weight" else name
        assert ref.value.name in (name, stored), f"the decoder takes '{ref.value.name}' for '{name}'"


def _shown(fact: object) -> str:
    if isinstance(fact, np.ndarray):
        flat = np.atleast_2d(np.asarray(fact, dtype=np.float64))[-1]
        return f"[.., {', '.join(f'{number:.6g}' for number in flat[-4:])}] at the last position"
    if isinstance(fact, float):
        return f"{fact:.6g}"
    if fact is None or isinstance(fact, int):
        return "none" if fact is None else str(fact)
    return f"'{fact}'" if isinstance(fact, str) else f"a {type(fact).__name__}"
