"""Weights by the names that the decoder asks for, read from the graph when their turn comes."""

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tokc.importers.checkpoint import Dense, Weight, lazy, widened
from tokc.importers.decoder import EMBEDDING, HEAD, HEAD_BIAS, POSITIONS
from tokc.importers.raising.facts import Decoder, Ref, weights
from tokc.importers.raising.sample import Array, Sample

WHOLE: Mapping[str, str] = {
    "embedding": EMBEDDING,
    "positions": POSITIONS,
    "head.weight": HEAD,
    "head.bias": HEAD_BIAS,
    "norm.weight": "model.norm.weight",
    "norm.bias": "model.norm.bias",
}
PARTS: Mapping[str, str] = {
    "attention_norm": "input_layernorm",
    "attention.q.linear": "self_attn.q_proj",
    "attention.k.linear": "self_attn.k_proj",
    "attention.v.linear": "self_attn.v_proj",
    "attention.q.norm": "self_attn.q_norm",
    "attention.k.norm": "self_attn.k_norm",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
# Where there are norms after attention and feed-forward too, that in front of the latter has another name.
SANDWICHED: Mapping[str, str] = {
    **PARTS,
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


def named_refs(decoder: Decoder) -> dict[str, Ref]:
    """Return a decoder's weights by the names that `decoder_program` asks for."""
    return {_name(path, decoder): ref for path, ref in weights(decoder)}


def _name(path: str, decoder: Decoder) -> str:
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", path)
    if layer is None:
        return WHOLE.get(path, path)
    number, part, kind = layer.groups()
    sandwiched = decoder.layers[int(number)].attention_post_norm is not None
    return f"model.layers.{number}.{(SANDWICHED if sandwiched else PARTS).get(part, part)}.{kind}"


def dense_weights(sample: Sample, refs: Mapping[str, Ref]) -> dict[str, Weight]:
    """Return weights in f32 that are read from the graph when they are asked for; one a reference."""
    made: dict[Ref, Dense] = {}
    for ref in refs.values():
        if ref not in made:
            made[ref] = _dense(sample, ref)
    return {name: made[ref] for name, ref in refs.items()}


def _dense(sample: Sample, ref: Ref) -> Dense:
    if ref.value.is_initializer() and not ref.transposed and ref.rows is None:
        return widened(sample.array(ref.value))
    shape = sample.shapes[ref.value]
    shape = shape[::-1] if ref.transposed else shape
    if ref.rows is not None:
        shape = (sum(end - first for first, end in ref.rows), *shape[1:])
    return Dense(
        lazy(lambda: np.ascontiguousarray(viewed(sample, ref), np.float32), ir.DataType.FLOAT, shape)
    )


def viewed(sample: Sample, ref: Ref) -> Array:
    """Return a weight's numbers, [out, in] or [width], as the graph stores them."""
    array = sample.array(ref.value)
    array = array.T if ref.transposed else array
    return array if ref.rows is None else np.concatenate([array[first:end] for first, end in ref.rows])


def same_numbers(sample: Sample, one: Ref, other: Ref) -> bool:
    """Return whether two weights are equal, which a graph may hold twice."""
    return one == other or np.array_equal(viewed(sample, one), viewed(sample, other))
