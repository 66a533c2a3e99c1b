"""Weights as importers hand them to the decoder, and as a family's own files hold them.

The first is the way back from a program: rows of partly rotated heads in their own order, each expert's
weights and a shared expert's gate apart. The second is the reverse of `tokc.importers.layouts`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tokc.exporters.weights import plain, rows_of
from tokc.importers.architecture import Architecture
from tokc.importers.checkpoint import Weight, selected, transposed
from tokc.importers.experts import ROUTER, SHARED_GATE, Experts, stacked
from tokc.importers.layouts import GATE_UP, LAYER, QKV, named_as_filed
from tokc.importers.rope import rotated_first

EXPERTS = "experts."


def decoder_weights(weights: Mapping[str, Weight], architecture: Architecture) -> dict[str, Weight]:
    """Return the weights of a program, Llama's names, as `decoder_program` takes them."""
    found: dict[str, Weight] = {}
    for name, weight in weights.items():
        order = _row_order(name, architecture)
        found |= _experts(name, weight if order is None else selected(weight, order), architecture.experts)
    return found


def file_weights(weights: Mapping[str, Weight], architecture: Architecture) -> dict[str, Weight]:
    """Return weights under the names and in the shapes of the family's own Hugging Face files."""
    family = architecture.family
    kept = decoder_weights(weights, architecture)
    if architecture.fused_qkv != "apart":
        kept = joined(kept, QKV, "qkv_proj", _head_by_head(architecture))
    if family.fused_gate_up:
        kept = joined(kept, GATE_UP, "gate_up_proj")
    if family.transposed:
        kept = {name: _turned(name, weight) for name, weight in kept.items()}
    return {named_as_filed(name, family): weight for name, weight in kept.items()}


def _row_order(name: str, architecture: Architecture) -> Sequence[int] | None:
    """Return which of the program's rows each row of q or k is, where a part of a head is rotated."""
    config, rotated = architecture.config, architecture.rope.rotated
    heads = next(
        (
            count
            for part, count in (("q_proj", config.heads), ("k_proj", config.kv_heads))
            if f".self_attn.{part}." in name
        ),
        None,
    )
    if rotated is None or heads is None:
        return None
    back = np.argsort(rotated_first(config.head_dim, rotated))
    return [head * config.head_dim + int(element) for head in range(heads) for element in back]


def _experts(name: str, weight: Weight, experts: Experts | None) -> dict[str, Weight]:
    """Return the weights of each expert apart, or a weight that is no stack of them."""
    block, found, part = name.partition(EXPERTS)
    if experts is None or ".mlp." not in name:
        return {name: weight}
    if name.endswith(f"mlp.{ROUTER}") and experts.shared_width:
        gate = f"{name.removesuffix(ROUTER)}{SHARED_GATE}"
        count = experts.count
        return {name: rows_of(weight, slice(0, count)), gate: rows_of(weight, slice(count, count + 1))}
    if not found or part.partition(".")[0].isdigit():
        return {name: weight}
    parts = GATE_UP if part.startswith("gate_up_proj") else (part.removesuffix(".weight"),)
    rows = weight.shape[0] // experts.count // len(parts)
    cut = [slice(at * rows, (at + 1) * rows) for at in range(experts.count * len(parts))]
    names = [f"{block}{EXPERTS}{index}.{one}.weight" for index in range(experts.count) for one in parts]
    return {one: rows_of(weight, rows) for one, rows in zip(names, cut, strict=True)}


def joined(
    weights: Mapping[str, Weight], parts: Sequence[str], whole: str, order: Sequence[int] | None = None
) -> dict[str, Weight]:
    """Stack the weights, and the biases, of projections that files hold as one, rows in `order` if given."""
    return dict(_joined(weights, parts, whole, order))


def _joined(
    weights: Mapping[str, Weight], parts: Sequence[str], whole: str, order: Sequence[int] | None
) -> Iterator[tuple[str, Weight]]:
    for name, weight in weights.items():
        found = next((part for part in parts if f".{part}." in name), None)
        if found is None:
            yield name, weight
        elif found == parts[0]:
            pieces = [weights[name.replace(f".{found}.", f".{part}.")] for part in parts]
            one = stacked(pieces)
            yield name.replace(f".{found}.", f".{whole}."), one if order is None else selected(one, order)


def _head_by_head(architecture: Architecture) -> Sequence[int] | None:
    """Return the order of the rows of q, k and v one above the other in which each head's lie together."""
    if architecture.fused_qkv != "interleaved":
        return None
    heads, dim = architecture.config.heads, architecture.config.head_dim
    rows = np.arange(3 * heads * dim).reshape(3, heads, dim)
    return [int(row) for row in rows.swapaxes(0, 1).reshape(-1)]


def _turned(name: str, weight: Weight) -> Weight:
    """Return a linear weight as [in, out]; any other as it is."""
    found = LAYER.match(name)
    return weight if found is None or found[3] != "weight" else transposed(plain(weight), name, "")
