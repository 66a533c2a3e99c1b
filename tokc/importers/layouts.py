"""The names, the order and the direction of a family's weights become those of Llama's.

Fused weights are cut when they are read, so that each part points into the same file.
"""

import re
from collections.abc import Mapping

from tokc.errors import ImportRefused
from tokc.importers.architecture import Architecture
from tokc.importers.checkpoint import Weight, selected, transposed
from tokc.importers.family import Family

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
LAYER = re.compile(r"^model\.layers\.\d+\.(self_attn|mlp)\.(\w+)\.(weight|bias)$")
BUFFERS = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")  # masks, not weights


def named_alike(name: str, family: Family) -> str:
    """Return what Llama calls a tensor of the family's checkpoints."""
    for theirs, ours in family.tensors:
        name = _renamed(name, theirs, ours)
    return name


def named_as_filed(name: str, family: Family) -> str:
    """Return what the family's checkpoints call a tensor of Llama's name."""
    for theirs, ours in family.tensors:
        name = _renamed(name, ours, theirs)
    return name


def _renamed(name: str, part: str, other: str) -> str:
    """Exchange a part of a name that is made of whole words between its dots."""
    return re.sub(rf"(?<![^.]){re.escape(part)}(?![^.])", other, name)


def is_buffer(name: str) -> bool:
    """Return whether a tensor of a checkpoint can be computed, so that nobody reads it."""
    return name.endswith(BUFFERS)


def laid_out(weights: Mapping[str, Weight], architecture: Architecture, origin: str) -> dict[str, Weight]:
    """Return the weights [out, in], queries, keys and values apart, gate and up too.

    Raises: ImportRefused for a fused tensor of another shape than the configuration asks for.
    """
    made: dict[str, Weight] = {}
    for name, weight in weights.items():
        found = LAYER.match(name)
        if found is None:
            made[name] = weight
            continue
        if architecture.family.transposed and found[3] == "weight":
            weight = transposed(weight, name, origin)  # noqa: PLW2901 - the same weight from here on
        parts = _parts(architecture, found[2])
        if not parts:
            made[name] = weight
            continue
        _require_rows(name, weight, sum(map(len, parts.values())), origin)
        made |= {name.replace(found[2], part): selected(weight, rows) for part, rows in parts.items()}
    return made


def _parts(architecture: Architecture, name: str) -> dict[str, list[int]]:
    """Return which rows of a fused projection each part is, none for one that is not fused."""
    config = architecture.config
    if name == "gate_up_proj" and architecture.family.fused_gate_up:
        width = config.intermediate
        return dict(zip(GATE_UP, (list(range(width)), list(range(width, 2 * width))), strict=True))
    if name != "qkv_proj" or architecture.fused_qkv == "apart":
        return {}
    if architecture.fused_qkv == "interleaved":
        dim = config.head_dim
        return {
            part: [(3 * head + at) * dim + i for head in range(config.heads) for i in range(dim)]
            for at, part in enumerate(QKV)
        }
    ends = [config.heads * config.head_dim]
    ends += [ends[0] + (1 + i) * config.kv_heads * config.head_dim for i in range(2)]
    return {part: list(range(first, end)) for part, first, end in zip(QKV, (0, *ends), ends, strict=False)}


def _require_rows(name: str, weight: Weight, rows: int, origin: str) -> None:
    if weight.shape[0] != rows:
        raise ImportRefused(
            f"tensor '{name}' has shape {list(weight.shape)}, the configuration asks for "
            f"{[rows, *weight.shape[1:]]}",
            where=origin,
            hint="the configuration and the weights are of different models; fetch both again",
        )
