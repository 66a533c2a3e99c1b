"""Read softmax(q k' + mask) v out of a sample: of products, mask and softmax, or of the op."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.importers.raising.facts import BoolArray
from tokc.importers.raising.mismatch import Unmatched
from tokc.importers.raising.rotation import HEADS_RANK
from tokc.importers.raising.sample import Sample
from tokc.importers.raising.walking import actives, capped, made, operand, plain, scalar

HIDDEN = -1e4  # a score that this is added to counts for nothing; fp16 has none below -65504
OPERANDS = 2
Q, K, V, MASK, PAST_KEY, PAST_VALUE = range(6)


@dataclass(frozen=True, eq=False)
class Core:
    """Hold softmax(q k' + mask) v by its operands; `keys` are [.., dim, total] if `turned_keys`."""

    output: ir.Value
    query: ir.Value
    keys: ir.Value
    values: ir.Value
    scale: float
    softcap: float
    mask: BoolArray
    turned_keys: bool
    past: tuple[ir.Value, ir.Value] | None = None
    presents: tuple[ir.Value, ...] = ()


def cores(sample: Sample) -> list[ir.Value]:
    """Return where attention may end: what an Attention op makes, or a product with a softmax."""
    return [node.outputs[0] for node in sample.graph if _may_end(sample, node)]


def _may_end(sample: Sample, node: ir.Node) -> bool:
    value = node.outputs[0]
    if made(value, "Attention"):
        return True
    return (
        made(value, "MatMul") is not None
        and len(actives(sample, node)) == OPERANDS
        and (_softmax(sample, node) is not None)
    )


def core_of(sample: Sample, value: ir.Value) -> Core:
    """Return the operands of attention.

    Raises: Unmatched if a part of it is missing or another.
    """
    op = made(value, "Attention")
    if op is not None:
        return _named_core(sample, op)
    product = made(value, "MatMul")
    softmax = None if product is None else _softmax(sample, product)
    if product is None or softmax is None or softmax.inputs[0] is None or product.inputs[1] is None:
        raise Unmatched(value, "attention, a product of a softmax with values")
    rank = len(sample.shapes[softmax.outputs[0]])
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        raise Unmatched(softmax.outputs[0], "a softmax over the last axis", 1)
    return _scores(sample, value, softmax.inputs[0], product.inputs[1])


def _softmax(sample: Sample, product: ir.Node) -> ir.Node | None:
    """Return the softmax of a product's first operand, behind the guard for rows that see nothing."""
    first = product.inputs[0]
    value = None if first is None or first not in sample.active else plain(sample, first)
    guard = made(value, "Where")
    if guard is not None and made(guard.inputs[0], "IsNaN") and scalar(sample, guard.inputs[1]) == 0:
        value = guard.inputs[2]
    return made(None if value is None else plain(sample, value), "Softmax")


def _scores(sample: Sample, output: ir.Value, value: ir.Value, values: ir.Value) -> Core:
    """Go back from the softmax over masks and scales to the product of queries and keys."""
    mask: BoolArray = np.ones((sample.size.seq, sample.size.total), dtype=np.bool_)
    scale, softcap = 1.0, 0.0
    while True:
        value = plain(sample, value)
        node = made(value, "MatMul", "Add", "Where", "Mul", "Div")
        if node is None:
            raise Unmatched(value, "scores, a scaled and masked product of queries and keys", 2)
        if node.op_type == "MatMul":
            break
        cap = capped(sample, node) if (scale, softcap) == (1.0, 0.0) else None
        if cap is not None:
            value, softcap = cap
        elif node.op_type in {"Mul", "Div"}:
            value, factor = _scaled(sample, node)
            scale *= factor
        elif softcap:
            raise Unmatched(value, "a mask that is laid over the capped scores", 2)
        else:
            value, allowed = _masked(sample, node)
            mask &= allowed
    query, keys = node.inputs
    if len(actives(sample, node)) != OPERANDS or query is None or keys is None:
        raise Unmatched(value, "a product of queries and keys", 2)
    return Core(output, query, keys, values, scale, softcap, mask, turned_keys=True)


def _scaled(sample: Sample, node: ir.Node) -> tuple[ir.Value, float]:
    parts = operand(sample, node)
    if parts is None or (node.op_type == "Div" and parts[0] is not node.inputs[0]):
        raise Unmatched(node.outputs[0], "scores that are scaled by one number", 2)
    return parts[0], parts[1] if node.op_type == "Mul" else 1 / parts[1]


def _masked(sample: Sample, node: ir.Node) -> tuple[ir.Value, BoolArray]:
    """Split ``scores + mask`` or ``where(mask, scores, low)`` into scores and what may be seen."""
    if node.op_type == "Add":
        known = [value for value in node.inputs if value is not None and value in sample.known]
        if len(known) != 1:
            raise Unmatched(node.outputs[0], "scores and a mask that positions and padding alone decide", 3)
        return actives(sample, node)[0], _allowed(sample, np.asarray(sample.known[known[0]]), node)
    condition, one, other = node.inputs
    if condition is None or condition not in sample.known or one is None or other is None:
        raise Unmatched(node.outputs[0], "a mask that positions and padding alone decide", 3)
    seen = np.asarray(sample.known[condition], dtype=np.bool_)
    scores, low = (one, other) if one in sample.active else (other, one)
    number = scalar(sample, low)
    if number is None or number > HIDDEN or scores not in sample.active:
        raise Unmatched(node.outputs[0], "scores where the mask allows them, and minus infinity elsewhere", 3)
    return scores, _allowed(sample, seen if scores is one else ~seen, node)


def _allowed(sample: Sample, mask: npt.NDArray[np.generic], node: ir.Node) -> BoolArray:
    """Return a mask [seq, total] that is the same for each sequence and head."""
    if mask.dtype != np.bool_:
        numbers = mask.astype(np.float64)
        if not ((numbers == 0) | (numbers <= HIDDEN)).all():
            raise Unmatched(node.outputs[0], "a mask of 0 and minus infinity only", 3)
        mask = numbers == 0
    full = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (1, 1, sample.size.seq, sample.size.total)))
    if full.shape[-2:] != (sample.size.seq, sample.size.total) or not (full == full[:1, :1]).all():
        raise Unmatched(node.outputs[0], "one mask for all sequences and heads", 3)
    return np.array(full[0, 0])


def _named_core(sample: Sample, node: ir.Node) -> Core:
    """Read ONNX's Attention op (opset 23)."""
    output, operands = node.outputs[0], [*node.inputs, *[None] * 6]
    query, keys, values = operands[:MASK]
    if query is None or keys is None or values is None or len(sample.shapes[query]) != HEADS_RANK:
        raise Unmatched(output, "an Attention op over [batch, heads, tokens, dim]")
    attributes = node.attributes
    past_key, past_value = operands[PAST_KEY], operands[PAST_VALUE]
    past = None if past_key is None or past_value is None else (past_key, past_value)
    seq, total = sample.size.seq, sample.size.total
    mask: BoolArray = np.ones((seq, total), dtype=np.bool_)
    if attributes.get_int("is_causal", 0):
        offset = sample.shapes[past[0]][2] if past else 0
        mask = np.tril(mask, offset)
    given = operands[MASK]
    if given is not None:
        if given not in sample.known:
            raise Unmatched(given, "a mask that positions and padding alone decide", 3)
        mask = mask & _allowed(sample, np.asarray(sample.known[given]), node)
    scale = attributes.get_float("scale", sample.shapes[query][-1] ** -0.5)
    softcap = attributes.get_float("softcap", 0.0)
    presents = tuple(node.outputs[1:3]) if past else ()
    return Core(
        output, query, keys, values, scale, softcap, mask, turned_keys=False, past=past, presents=presents
    )
