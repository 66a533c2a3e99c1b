"""Counts the work of a launch: FLOPs by the node's own rule, bytes by the buffers that the launch touches.

The rules of `tokc.ir.costs` are linear in rows, in the tokens attended to and in the tokens cached, so that
three steps tell every coefficient.
"""

from collections.abc import Sequence

import onnx_ir as ir

from tokc.cost.launch_work import F32, INT8, LaunchWork
from tokc.ir.costs import Cost
from tokc.ir.expert_rules import touched_share
from tokc.ir.ops import node_cost
from tokc.targets.plan import Buffer

PACKED = frozenset({"u8", "i8"})
ONE_OF_EACH = {"tokens": 1, "rows": 1, "drafts": 1, "pages": 1}


def launch_work(node: ir.Node, buffers: Sequence[Buffer], page: int) -> LaunchWork:
    """Return the work of a launch over `buffers`, its operands', for `node`; `page` in tokens.

    Weights count as they are packed where the node reads them whole; rows that are gathered from a table
    count as they are written. An op that looks at the past reads the cache, any other writes its rows there.
    """
    touched = {buffer.name: buffer for buffer in buffers}.values()
    row, attended, whole = _coefficients(node)
    weights = [b for b in touched if b.space == "weights"] if whole.bytes else []
    entry_bytes = sum(b.bytes(ONE_OF_EACH) / page for b in touched if b.space == "kv")
    rows = [b for b in touched if b.space != "kv" and b.shape[0] in {"tokens", "rows", "drafts"}]
    reads_past = attended.bytes > 0
    return LaunchWork(
        arithmetic=INT8 if any(b.dtype in PACKED for b in weights) else F32,
        row_flops=row.flops,
        attended_flops=attended.flops,
        whole_bytes=sum(b.bytes({}) for b in weights),
        row_bytes=sum(b.bytes(ONE_OF_EACH) for b in rows) + (0.0 if reads_past else entry_bytes),
        cached_bytes=entry_bytes if reads_past else 0.0,
        window=node.attributes.get_int("window", 0),
        row_share=touched_share(node, 1),
    )


def _coefficients(node: ir.Node) -> tuple[Cost, Cost, Cost]:
    """Return the cost a row, the cost a row and token of context, and what does not depend on them."""
    one = node_cost(node, tokens=1, context=1)
    two = node_cost(node, tokens=2, context=1)
    deeper = node_cost(node, tokens=1, context=2)
    attended = Cost(deeper.flops - one.flops, deeper.bytes - one.bytes)
    row = Cost(two.flops - one.flops - attended.flops, two.bytes - one.bytes - attended.bytes)
    whole = Cost(one.flops - row.flops - attended.flops, one.bytes - row.bytes - attended.bytes)
    return row, attended, whole
