"""Finds the residual stream of a program: what embeds into it, adds to it and reads it."""

from collections import deque
from dataclasses import dataclass, field

import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.program import Program
from tokc.ir.rewrite import Missed, made_by, only_reader, readers, scalar

FUSE_FIRST = "run fuse-linear before rotate-residual, and quantize-weights after it"
SWAP_HEADS = [0, 2, 1, 3]  # [batch, seq, heads, dim] and [batch, heads, seq, dim]


@dataclass
class Stream:
    """The nodes about the residual stream of one program.

    `embeddings` are Gathers of tables, `writers` Linears whose results are added to the stream, `readers`
    Linears that read it, each with the weight of the norm in between or None, and `norms` those norms.
    """

    embeddings: dict[ir.Node, None] = field(default_factory=dict)
    writers: dict[ir.Node, None] = field(default_factory=dict)
    readers: dict[ir.Node, ir.Value | None] = field(default_factory=dict)
    norms: dict[ir.Node, None] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadPair:
    """The Linear whose rows from `start` to `stop` are the heads of v, and the one that reads them mixed."""

    value: ir.Node
    start: int
    stop: int
    output: ir.Node


def residual_stream(program: Program) -> Stream:
    """Return what is about the residual stream.

    Raises: PassFailed if something computes on single channels of it, so that it cannot be rotated.
    """
    search = _Search()
    for node in program.graph:
        if (node.domain, node.op_type) == ("", "Gather") and _is_table(node.inputs[0], program.config.hidden):
            search.reach(node.outputs[0])
    if not search.stream.embeddings:
        raise PassFailed("rotate-residual finds no embedding that a Gather reads", hint=FUSE_FIRST)
    return search.stream


class _Search:
    """Follow the stream from value to value, forwards and backwards."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.seen: set[ir.Value] = set()
        self.queue: deque[ir.Value] = deque()

    def reach(self, value: ir.Value) -> None:
        self._push(value)
        while self.queue:
            value = self.queue.popleft()
            if value.is_graph_output():
                raise PassFailed(f"the residual stream '{value.name}' is an output of the program")
            self._made(value, value.producer())
            for node in readers(value):
                self._read(value, node)

    def _push(self, value: ir.Value | None) -> None:
        assert value is not None, "an operand of an add is given"
        if value not in self.seen:
            self.seen.add(value)
            self.queue.append(value)

    def _made(self, value: ir.Value, node: ir.Node | None) -> None:
        """Go backwards from a value of the stream."""
        if node is None:
            raise _refusal(value, node, "writes to")
        match node.domain, node.op_type:
            case ("", "Gather") if _is_table(node.inputs[0], None):
                self.stream.embeddings[node] = None
            case ("", "Gather"):
                self._push(node.inputs[0])
            case ("tokc", "Linear"):
                self.stream.writers[node] = None
            case ("", "Add") | ("tokc", "AddRmsNorm"):
                self._push(node.inputs[0])
                self._push(node.inputs[1])
            case ("", "Mul") if _scaled(node) is not None:
                self._push(_scaled(node))
            case _:
                raise _refusal(value, node, "writes to")

    def _read(self, value: ir.Value, node: ir.Node) -> None:
        """Go forwards from a value of the stream."""
        match node.domain, node.op_type:
            case ("", "Add"):
                self._push(node.outputs[0])
            case ("", "Gather") if node.inputs[0] is value:
                self._push(node.outputs[0])
            case ("", "Mul") if _scaled(node) is value:
                self._push(node.outputs[0])
            case ("", "RMSNormalization") if node.attributes.get_int("axis", -1) == -1:
                self._norm(node, node.outputs[0], node.inputs[1])
            case ("tokc", "AddRmsNorm"):
                self._push(node.outputs[0])
                self._norm(node, node.outputs[1], node.inputs[2])
            case ("tokc", "Linear"):
                self.stream.readers[node] = None
            case _:
                raise _refusal(value, node, "reads")

    def _norm(self, norm: ir.Node, normed: ir.Value, weight: ir.Value | None) -> None:
        self.stream.norms[norm] = None
        for node in readers(normed):
            if (node.domain, node.op_type) != ("tokc", "Linear"):
                raise _refusal(normed, node, "reads")
            self.stream.readers[node] = weight
        if normed.is_graph_output():
            raise PassFailed(f"the normed residual stream '{normed.name}' is an output of the program")


def _refusal(value: ir.Value, node: ir.Node | None, does: str) -> PassFailed:
    kind = "an input" if node is None else f"'{node.op_type}'"
    why = {
        "RMSNormalization": "its weight scales single channels of what is added, and can be folded nowhere",
        "LayerNormalization": "it takes the mean off single channels; only RMS norms turn with the stream",
    }.get("" if node is None else node.op_type, "only Linears, sums, scalars and RMS norms turn with it")
    return PassFailed(
        f"the residual stream cannot be rotated: {kind} {does} '{value.name}'; {why}",
        where=None if node is None else f"node '{node.name}'",
        hint=FUSE_FIRST if node is not None and node.op_type in {"MatMul", "QuantLinear"} else None,
    )


def _is_table(value: ir.Value | None, hidden: int | None) -> bool:
    """Return whether a value is a constant [n, hidden]."""
    if value is None or value.shape is None or len(value.shape) != 2:
        return False
    constant = value.const_value is not None or made_by(value, "BlockDequantize", "tokc") is not None
    return constant and hidden in (None, value.shape[1])


def _scaled(node: ir.Node) -> ir.Value | None:
    """Return what a product scales by one number, None if it is no such product."""
    first, second = node.inputs
    return second if scalar(first) is not None else first if scalar(second) is not None else None


def head_pair(attention: ir.Node) -> HeadPair | Missed:
    """Return the Linears before and after the values of an Attention, or why they cannot turn together."""
    turned = made_by(attention.inputs[2], "Transpose")
    split_heads = made_by(None if turned is None else turned.inputs[0], "Reshape")
    flat = None if split_heads is None else split_heads.inputs[0]
    if turned is None or flat is None or len(readers(flat)) > 1:
        return Missed(attention, "its values are not a projection split into heads")
    source, start = flat.producer(), 0
    if source is not None and source.op_type == "Split":
        before = source.outputs[: source.outputs.index(flat)]
        widths = [_width(one) for one in before]
        start, source = sum(widths), None if source.inputs[0] is None else source.inputs[0].producer()
    if source is None or (source.domain, source.op_type) != ("tokc", "Linear"):
        return Missed(attention, "its values are not the result of a Linear")
    output = _after(attention.outputs[0])
    if output is None:
        return Missed(attention, "what reads the mixed heads is not a Linear")
    return HeadPair(source, start, start + _width(flat), output)


def _after(mixed: ir.Value) -> ir.Node | None:
    """Return the Linear that reads the heads side by side."""
    turned = only_reader(mixed, "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", [])) != SWAP_HEADS:
        return None
    merged = only_reader(turned.outputs[0], "Reshape")
    return None if merged is None else only_reader(merged.outputs[0], "Linear", "tokc")


def _width(value: ir.Value) -> int:
    assert value.shape is not None, f"'{value.name}' has no shape"
    width = value.shape[-1]
    assert isinstance(width, int), f"the width of '{value.name}' is not static"
    return width
