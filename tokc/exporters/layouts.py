"""Weights as a family's own files hold them: some stacked by rows, those of experts one by one."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from tokc.errors import TokcError
from tokc.exporters.weights import rows_of
from tokc.importers.checkpoint import Dense, Grid, Weight, dequantized, lazy, static
from tokc.importers.family import Family

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
FACTOR = "partial_rotary_factor"
EXPERTS, ROUTER = "experts.", "gate.weight"


def file_weights(
    weights: Mapping[str, Weight], family: Family, source: Mapping[str, object]
) -> dict[str, Weight]:
    """Return weights under the names and in the shapes of a family's own files; `source` is its config.json.

    Raises: TokcError for a family whose files hold them otherwise in ways that are not reversed yet.
    """
    turned = family.transposed or family.fused_qkv == "interleaved" or _partly_rotated(family, source)
    if family.tensors or turned or _shared_expert(source):
        raise TokcError(
            f"weights of family '{family.name}' cannot be written as its own files hold them yet",
            hint="the model's own folder has them",
        )
    kept = {name: one for stacked in weights.items() for name, one in _experts(*stacked, weights)}
    if family.fused_qkv == "stacked":
        kept = _joined(kept, QKV, "qkv_proj")
    return _joined(kept, GATE_UP, "gate_up_proj") if family.fused_gate_up else kept


def _partly_rotated(family: Family, source: Mapping[str, object]) -> bool:
    """Return whether a part of each head is rotated, whose rows the program has in another order."""
    stated = [source, source.get("rope_parameters"), source.get("rope_scaling")]
    shares = [one[FACTOR] for one in stated if isinstance(one, Mapping) and FACTOR in one]
    return family.rotary_share != 1.0 or any(share != 1.0 for share in shares)


def _shared_expert(source: Mapping[str, object]) -> bool:
    """Return whether an expert sees every token, which the program counts among the others."""
    return bool(source.get("shared_expert_intermediate_size") or source.get("n_shared_experts"))


def _experts(name: str, weight: Weight, weights: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
    """Yield the weights of each expert apart, or a weight that is no stack of them."""
    block, found, part = name.partition(EXPERTS)
    router = weights.get(f"{block}{ROUTER}")
    if not found or part.partition(".")[0].isdigit() or router is None:
        yield name, weight
        return
    count = router.shape[0]
    parts = GATE_UP if part.startswith("gate_up_proj") else (part.removesuffix(".weight"),)
    rows = weight.shape[0] // count // len(parts)
    for index in range(count * len(parts)):
        expert, which = divmod(index, len(parts))
        cut = slice(index * rows, (index + 1) * rows)
        yield f"{block}{EXPERTS}{expert}.{parts[which]}.weight", rows_of(weight, cut)


def _joined(weights: Mapping[str, Weight], parts: Sequence[str], whole: str) -> dict[str, Weight]:
    """Stack the weights, and the biases, of projections that files hold as one."""
    result: dict[str, Weight] = {}
    for name, weight in weights.items():
        found = next((part for part in parts if f".{part}." in name), None)
        if found is None:
            result[name] = weight
        elif found == parts[0]:
            pieces = [weights[name.replace(f".{found}.", f".{part}.")] for part in parts]
            result[name.replace(f".{found}.", f".{whole}.")] = _stacked(pieces)
    return result


def _stacked(pieces: Sequence[Weight]) -> Weight:
    """Return weights one below the other, on their grid if they share one."""
    grids = [piece for piece in pieces if isinstance(piece, Grid)]
    first = grids[0] if grids else None
    if first is not None and len(grids) == len(pieces) and len({_kind(grid) for grid in grids}) == 1:
        offsets = [grid.offset for grid in grids if grid.offset is not None]
        return Grid(
            _below([grid.q for grid in grids]),
            _below([grid.scale for grid in grids]),
            _below(offsets) if offsets else None,
            first.zero_point,
            first.block_size,
        )
    return Dense(_below([_plain(piece) for piece in pieces]))


def _plain(piece: Weight) -> ir.LazyTensor:
    return lazy(lambda: dequantized(piece), ir.DataType.FLOAT, piece.shape)


def _kind(grid: Grid) -> tuple[object, ...]:
    return grid.q.dtype, grid.scale.dtype, grid.offset is None, grid.zero_point, grid.block_size


def _below(tensors: Sequence[ir.TensorProtocol]) -> ir.LazyTensor:
    shape = (sum(static(one)[0] for one in tensors), *static(tensors[0])[1:])
    return lazy(lambda: np.concatenate([one.numpy() for one in tensors]), tensors[0].dtype, shape)
