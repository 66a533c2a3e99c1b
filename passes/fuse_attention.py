"""Recognize attention in its parts."""

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from tokc.ir.program import Program
from tokc.ir.rewrite import Answer, Missed, Rewrite, constant_input, made_by, only_reader, rewrite, scalar

SWAP_LAST = (0, 1, 3, 2)
LOWEST = -1e30  # a score below this stands for minus infinity
KEY_AXES = (2, -2)


@dataclass(frozen=True)
class FuseAttention:
    """Fuse the products, mask and softmax of attention, and the cache's growth, to one Attention.

    Before: ``key = Concat(past_key, k); value = Concat(past_value, v)``
            ``p = Softmax(Where(mask, MatMul(q, Transpose(repeat(key))) * scale, -inf))``
            ``y = MatMul(p, repeat(value))`` where repeat, for grouped heads, may be absent
    After:  ``y, key, value = Attention(q, k, v, mask, past_key, past_value)``

    Scores that are capped before the mask, ``c * Tanh(s / c)``, become the attribute `softcap`.
    The Concat of layer 0 stays for its mask, which needs its length only.
    Saves the scores' way through memory, ``4 * heads * tokens * context * 4`` bytes a layer, and the repeated
    cache.
    Exact up to the order of sums.
    """

    name: ClassVar[str] = "fuse-attention"
    exact: ClassVar[bool] = True

    def run(self, program: Program) -> Program:
        return rewrite(program, _fuse)


@dataclass(frozen=True)
class _Scores:
    """Hold what the scores are made of."""

    query: ir.Value
    key: ir.Value
    scale: float
    cap: float


def _fuse(node: ir.Node) -> Answer:
    softmax = made_by(node.inputs[0], "Softmax") if (node.domain, node.op_type) == ("", "MatMul") else None
    if softmax is None or node.inputs[1] is None:
        return None
    if (
        softmax.attributes.get_int("axis", -1) not in (-1, 3)
        or only_reader(softmax.outputs[0], "MatMul") is None
    ):
        return Missed(node, "its probabilities are not over the last axis, or have other readers")
    masked = _masked(softmax.inputs[0])
    if masked is None:
        return Missed(node, "its scores are not masked by Where(mask, scores, -inf)")
    mask, raw = masked
    scores = _scores(raw)
    if scores is None:
        return Missed(node, "its scores are not a scaled product of queries and transposed keys")
    keys = made_by(_without_repeat(scores.key), "Concat")
    values = made_by(_without_repeat(node.inputs[1]), "Concat")
    if keys is None or values is None or not (_grows(keys) and _grows(values)):
        return Missed(node, "its keys and values are not the past's and the new ones along axis 2")
    return _attention(node, mask, scores, keys, values)


def _attention(node: ir.Node, mask: ir.Value, scores: _Scores, keys: ir.Node, values: ir.Node) -> Answer:
    (past_key, key), (past_value, value) = keys.inputs, values.inputs
    operands = [scores.query, key, value, mask, past_key, past_value]
    attributes = {"scale": scores.scale, **({"softcap": scores.cap} if scores.cap else {})}
    fused = ir.node("Attention", operands, attributes, num_outputs=3)
    return Rewrite(
        [fused], dict(zip([node.outputs[0], keys.outputs[0], values.outputs[0]], fused.outputs, strict=True))
    )


def _masked(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Return mask and scores of Where(mask, scores, -inf)."""
    where = made_by(value, "Where")
    if where is None:
        return None
    mask, scores, low = where.inputs
    lowest = scalar(low)
    if mask is None or scores is None or lowest is None or lowest > LOWEST:
        return None
    return mask, scores


def _scores(value: ir.Value) -> _Scores | None:
    """Return what Mul(MatMul(q, Transpose(k)), scale) is made of; without Mul the scale is 1."""
    value, cap = _uncapped(value)
    scaled = made_by(value, "Mul")
    parts = None if scaled is None else constant_input(scaled)
    product, scale = parts or (value, 1.0)
    matmul = made_by(product, "MatMul")
    transpose = None if matmul is None else made_by(matmul.inputs[1], "Transpose")
    if matmul is None or transpose is None or tuple(transpose.attributes.get_ints("perm", ())) != SWAP_LAST:
        return None
    query, key = matmul.inputs[0], transpose.inputs[0]
    return None if query is None or key is None else _Scores(query, key, scale, cap)


def _uncapped(value: ir.Value) -> tuple[ir.Value, float]:
    """Return s and c of Mul(Tanh(Mul(s, 1 / c)), c), the value itself and 0 if it is something else."""
    outer = made_by(value, "Mul")
    parts = None if outer is None else constant_input(outer)
    tanh = None if parts is None else made_by(parts[0], "Tanh")
    inner = None if tanh is None else made_by(tanh.inputs[0], "Mul")
    scaled = None if inner is None else constant_input(inner)
    if parts is None or scaled is None or not math.isclose(parts[1] * scaled[1], 1.0, rel_tol=1e-6):
        return value, 0.0
    return scaled[0], parts[1]


def _without_repeat(value: ir.Value) -> ir.Value:
    """Return the cache behind Reshape(Expand(Unsqueeze(cache))), or the value itself."""
    reshape = made_by(value, "Reshape")
    expand = None if reshape is None else made_by(reshape.inputs[0], "Expand")
    unsqueeze = None if expand is None else made_by(expand.inputs[0], "Unsqueeze")
    cache = None if unsqueeze is None or scalar(unsqueeze.inputs[1]) != KEY_AXES[0] else unsqueeze.inputs[0]
    return value if cache is None else cache


def _grows(node: ir.Node) -> bool:
    return len(node.inputs) == len(KEY_AXES) and node.attributes.get_int("axis", 0) in KEY_AXES
