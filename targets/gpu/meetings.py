"""Lowers where ranks meet: a collective that moves what each has, and a kernel that makes one of it.

A sum over ranks is no all-reduce of the library, whose order of additions depends on the size of the message
and on where a number lies in it: parts are moved, and added in the order of ranks. A narrow step gathers all
parts everywhere. A wide one exchanges them, so that each rank sums a share of all, and gathers the sums: it
moves as much as an all-reduce around a ring.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from tokc.cost.launch_work import LaunchWork
from tokc.runtime.drivers.ranks import ALL_GATHER, EXCHANGE
from tokc.targets.gpu.kernel import NARROW_TOKENS
from tokc.targets.gpu.kernels.ranks import RankJoin, RankSum
from tokc.targets.gpu.reads import single
from tokc.targets.lowering import Slot
from tokc.targets.nodes import layer_of, required
from tokc.targets.plan import ITEM_BYTES, Axis, Buffer, Launch, Operand, Rows, Steps

if TYPE_CHECKING:
    from tokc.targets.gpu.emit import Emission

OPS = {ALL_GATHER: "AllGather", EXCHANGE: "Exchange"}
F32_BYTES = ITEM_BYTES["f32"]


def lower_sum_over_ranks(low: "Emission", node: ir.Node) -> None:
    """Lower the sum of what ranks have of a value."""
    x = _whole(low, node)
    share = x.width // low.ranks
    assert x.width % low.ranks == 0, f"{x.width} columns are not shared by {low.ranks} ranks"
    most = low.limits[x.rows]
    gathered = low.ranks * (min(NARROW_TOKENS, most) if x.rows == "tokens" else most)
    parts = _parts(low, node, max(most, gathered), x.width)
    y = low.activation(node.outputs[0], x.width, x.rows)
    _collective(low, node, (ALL_GATHER, "narrow"), (x.operand, parts), x.width, x.rows)
    _make(low, node, RankSum(low.ranks, x.width, x.rows), (parts, y), "narrow")
    _collective(low, node, (EXCHANGE, "wide"), (x.operand, parts), share, x.rows)
    sums = low.buffer(Buffer(f"sums.{node.outputs[0].name}", "arena", "f32", (x.rows, share)))
    _make(low, node, RankSum(low.ranks, share, x.rows), (parts, sums), "wide")
    _collective(low, node, (ALL_GATHER, "wide"), (sums, y), share, x.rows)


def lower_join_over_ranks(low: "Emission", node: ir.Node) -> None:
    """Lower the columns that each rank has some of to whole rows."""
    x = _whole(low, node)
    parts = _parts(low, node, x.rows, low.ranks * x.width)
    y = low.activation(node.outputs[0], low.ranks * x.width, x.rows)
    _collective(low, node, (ALL_GATHER, "all"), (x.operand, parts), x.width, x.rows)
    _make(low, node, RankJoin(low.ranks, x.width, x.rows), (parts, y), "all")


def _whole(low: "Emission", node: ir.Node) -> Slot:
    x = single(low, node, 0)
    assert (x.column, x.stride) == (0, x.width), f"'{node.name}' meets over a part of a buffer"
    return x


def _parts(low: "Emission", node: ir.Node, rows: Rows | int, width: int) -> Operand:
    return low.buffer(Buffer(f"parts.{node.outputs[0].name}", "arena", "f32", (rows, width)))


def _make(
    low: "Emission", node: ir.Node, kernel: RankSum, operands: tuple[Operand, Operand], steps: Steps
) -> None:
    parts, y = operands
    low.kernels.setdefault(kernel.symbol, kernel)
    joined = kernel.ranks if isinstance(kernel, RankJoin) else 1
    moved = F32_BYTES * kernel.width * (kernel.ranks + joined)
    low.launches.append(
        Launch(
            kernel.symbol,
            (parts, low.info(), y),
            kernel.rows,
            node.op_type,
            _layer(node),
            LaunchWork(row_bytes=moved),
            kernel.grid,
            steps,
        )
    )


def _collective(
    low: "Emission",
    node: ir.Node,
    which: tuple[str, Steps],
    operands: tuple[Operand, Operand],
    width: int,
    rows: Rows,
) -> None:
    """Append a collective, by name and steps, in which each rank has `width` numbers a row for each other."""
    name, steps = which
    size = F32_BYTES * width
    work = LaunchWork(link_bytes=size * (low.ranks - 1))
    made = Launch(name, operands, rows, OPS[name], _layer(node), work, (Axis(rows, times=size),), steps)
    low.launches.append(replace(made, collective=True))


def _layer(node: ir.Node) -> int | None:
    """Return the layer of what made the value over which ranks meet."""
    maker = required(node.inputs[0]).producer()
    return None if maker is None else layer_of(maker)
