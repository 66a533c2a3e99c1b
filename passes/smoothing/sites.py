"""Finds the places where a scale can be taken off channels of an activation and put into weights."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokc.ir.program import Program
from tokc.ir.rewrite import Missed, made_by, readers, remark
from tokc.passes.quantization.grid import F32
from tokc.passes.rotation.stream import HeadPair, head_pair


@dataclass(frozen=True)
class Site:
    """An activation that linear layers read and whose channels one weight scales.

    That weight is `norm`'s, or it is the rows from `start` of the linear layer `writer`. Where heads of v are
    shared by `shared` query heads of `dim` channels, the channels of these go together.
    """

    readers: tuple[ir.Node, ...]
    norm: ir.Value | None = None
    writer: ir.Node | None = None
    start: int = 0
    shared: int = 1
    dim: int = 0

    def together(self, per_channel: F32) -> F32:
        """Return values of channels [in] with those that go together exchanged for their largest."""
        if self.shared == 1:
            return per_channel
        heads = per_channel.reshape(-1, self.shared, self.dim)
        return np.broadcast_to(heads.max(axis=1, keepdims=True), heads.shape).reshape(-1)

    def written(self, scale: F32) -> F32:
        """Return the scale of the channels as `norm` or `writer` has them, each once."""
        if self.shared == 1:
            return scale
        return np.ascontiguousarray(scale.reshape(-1, self.shared, self.dim)[:, 0]).reshape(-1)


def sites(program: Program, free: Collection[ir.Node]) -> list[Site]:
    """Return all sites of a batch program, in order; only linear layers in `free` may change."""
    found: list[Site] = []
    for node in program.graph:
        match node.domain, node.op_type:
            case "", "RMSNormalization":
                site = _after_norm(node)
            case "tokc", "GatedActivation":
                site = _after_gate(node)
            case "", "Attention":
                site = _after_attention(program, node)
            case _:
                continue
        if isinstance(site, Missed):
            remark(site)
        elif any(one not in free for one in (*site.readers, *([site.writer] if site.writer else []))):
            remark(Missed(node, "a weight about it keeps its grid or is not one layer's alone"))
        else:
            found.append(site)
    return found


def by_reader(found: Collection[Site]) -> Mapping[ir.Node, Site]:
    """Return the site that each linear layer reads."""
    return {node: site for site in found for node in site.readers}


def _after_norm(node: ir.Node) -> Site | Missed:
    weight, linears = node.inputs[1], _linears(node.outputs[0])
    if weight is None or weight.const_value is None or len(readers(weight)) > 1:
        return Missed(node, "its weight is not a constant of its own")
    if not linears:
        return Missed(node, "what it makes is read by other than linear layers")
    return Site(tuple(linears), norm=weight)


def _after_gate(node: ir.Node) -> Site | Missed:
    writer, linears = made_by(node.inputs[0], "Linear", "tokc"), _linears(node.outputs[0])
    if writer is None or not linears or len(readers(writer.outputs[0])) > 1:
        return Missed(node, "gate and up are not one linear layer's that it alone reads")
    return Site(tuple(linears), writer=writer, start=_rows(writer) // 2)


def _after_attention(program: Program, node: ir.Node) -> Site | Missed:
    pair = head_pair(node)
    if not isinstance(pair, HeadPair):
        return pair
    config = program.config
    shared = config.heads // config.kv_heads
    return Site((pair.output,), writer=pair.value, start=pair.start, shared=shared, dim=config.head_dim)


def _linears(value: ir.Value) -> list[ir.Node]:
    """Return the readers of a value if all are linear layers that read it as their input, else none."""
    found = readers(value)
    if value.is_graph_output() or not all(_reads(node, value) for node in found):
        return []
    return sorted(found, key=lambda node: str(node.outputs[0].name))


def _reads(node: ir.Node, value: ir.Value) -> bool:
    return (node.domain, node.op_type) == ("tokc", "Linear") and node.inputs[0] is value


def _rows(linear: ir.Node) -> int:
    weight = linear.inputs[1]
    assert weight is not None, "a Linear has a weight"
    assert weight.shape is not None, f"'{weight.name}' has no shape"
    return int(weight.shape.numpy()[0])


def free_linears(
    readers_of: Mapping[ir.Value, list[ir.Node]], kept: Collection[ir.Value]
) -> Iterator[ir.Node]:
    """Return the linear layers whose weight is theirs alone and not among `kept`, the head left out."""
    for value, nodes in readers_of.items():
        head = any(node.op_type != "Linear" or node.outputs[0].is_graph_output() for node in nodes)
        if len(nodes) == 1 and not head and value not in kept:
            yield nodes[0]
