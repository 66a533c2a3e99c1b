"""Cuts a ragged program over ranks: the program that one of several GPUs runs, its weights cut with it.

Projections of a block's inputs are cut by rows of the weight, so that a rank has some heads, or some of the
MLP's columns; the one back to the hidden size by columns, and its results are summed over ranks. Experts are
cut inside, each as an MLP is. The head is cut by vocabulary where it divides, and its logits are put
together. The embedding, of which a step reads a row a token, is whole on each rank.
Source: Shoeybi et al. 2019 (Megatron-LM), arXiv:1909.08053, sec. 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.ir.rewrite import initializer
from tokc.targets.constants import array
from tokc.targets.nodes import integer, required, split_widths

SUM, JOIN = "SumOverRanks", "JoinOverRanks"
DOMAIN = "tokc.ranks"
MOST_RANKS = 8
# Where a product's weight begins among its inputs, and how many inputs it takes; a bias lies behind these.
WEIGHTS = {"Linear": (1, 1), "QuantLinear": (1, 3), "MoeLinear": (1, 1), "QuantMoeLinear": (1, 3)}
BIAS = {"Linear": 2, "QuantLinear": 4}
OF_EXPERTS = frozenset({"MoeLinear", "QuantMoeLinear"})
ELEMENTWISE = frozenset({"Add", "Mul", "Sigmoid", "Gelu"})
MULTIPLE = 32  # a rank's columns of a weight are a multiple of it, which the kernels ask for

Pick = Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Rank:
    """One of `count` GPUs that run a step together."""

    index: int
    count: int

    def share(self, size: int, what: str, multiple: int = 1) -> range:
        """Return this rank's part of `size`.

        Raises: TargetRefused if it cannot be cut in parts that are a multiple of `multiple`.
        """
        if size % (self.count * multiple):
            of = f" in multiples of {multiple}" if multiple > 1 else ""
            raise TargetRefused(f"{size} {what} cannot be cut over {self.count} devices{of}")
        part = size // self.count
        return range(self.index * part, (self.index + 1) * part)


@dataclass(frozen=True)
class Share:
    """The program of one rank; `own` are the names of the weights, as artifacts have them, that are cut."""

    program: Program
    own: frozenset[str]

    def owns(self, tensor: str) -> bool:
        """Return whether a tensor of the artifact, a weight or its scales or offsets, is cut."""
        stem, _, part = tensor.rpartition(".")
        return tensor in self.own or (part in {"scale", "offset"} and stem in self.own)


def sharded(program: Program, rank: Rank) -> Share:
    """Return the share of one rank, with collectives where ranks meet.

    Raises: TargetRefused if heads, or the columns of a weight, cannot be dealt out evenly; it names the
    numbers of devices that they can be dealt to.
    """
    try:
        return _sharded(program, rank)
    except TargetRefused as error:
        fitting = [count for count in range(2, MOST_RANKS + 1) if _can_be_cut(program, count)]
        able = f"it can be cut over {', '.join(map(str, fitting))}" if fitting else "it runs on one device"
        raise TargetRefused(error.problem, where=error.where, hint=able) from error


def _sharded(program: Program, rank: Rank) -> Share:
    config = program.config
    heads, kv_heads = (
        len(rank.share(size, what))
        for size, what in ((config.heads, "heads"), (config.kv_heads, "heads of keys and values"))
    )
    copy = program.copy()
    cut = _Cut(copy.graph, rank)
    cut.run()
    made = copy.replace(config=replace(config, heads=heads, kv_heads=kv_heads))
    return Share(made, frozenset(cut.own))


def _can_be_cut(program: Program, count: int) -> bool:
    try:
        _sharded(program, Rank(0, count))
    except TargetRefused:
        return False
    return True


@dataclass
class _Cut:
    """Walks a graph in order, and keeps of which values a rank has some columns, or a part of the sum."""

    graph: ir.Graph
    rank: Rank
    some: set[ir.Value] = field(default_factory=set)
    parts: set[ir.Value] = field(default_factory=set)
    own: set[str] = field(default_factory=set)

    def run(self) -> None:
        for node in list(self.graph):
            self.visit(node)
        logits, *caches = self.graph.outputs
        if logits in self.some:
            self.graph.outputs[:] = [self._meet(logits, JOIN), *caches]

    def visit(self, node: ir.Node) -> None:
        """Cut a node, and note what a rank has of its results."""
        if (
            node.op_type == "MoeCombine"
            and {x for x in (node.inputs[0], *node.inputs[2:]) if x} <= self.parts
        ):
            self.parts.add(node.outputs[0])
            return
        for value in dict.fromkeys(node.inputs):
            if value is not None and value in self.parts:
                self._meet(value, SUM)
        if node.op_type in WEIGHTS:
            self._product(node)
        elif any(value in self.some for value in node.inputs):
            self._follow(node)

    def _follow(self, node: ir.Node) -> None:
        """Cut a node that reads columns of which a rank has some."""
        given = [value for value in node.inputs if value is not None and value.const_value is None]
        match node.op_type:
            case "Split":
                widths = [len(self.rank.share(width, "columns")) for width in split_widths(node)]
                name = f"{node.outputs[0].name}.widths"
                sizes = initializer(ir.tensor(np.array(widths, np.int64), name=name), name)
                self.graph.register_initializer(sizes)
                node.replace_input_with(1, sizes)
            case "RopeWriteKV" | "PagedAttention":
                assert all(value in self.some for value in node.inputs[:3]), f"'{node.name}' is cut in part"
                for name in ("heads", "kv_heads"):
                    part = self.rank.share(integer(node, name), "heads")
                    node.attributes[name] = ir.AttrInt64(name, len(part))
                for value in (*given, *node.outputs[1:]):
                    self._cut_cache(value)
                self._note(node.outputs[0])
                return
            case "GatedActivation":
                pass
            case op if op in ELEMENTWISE and all(value in self.some for value in given):
                pass
            case op:
                raise TargetRefused(f"'{op}' cannot be cut over devices", where=f"node '{node.name}'")
        for value in node.outputs:
            self._note(value)

    def _note(self, value: ir.Value) -> None:
        """A rank has some columns of a value, or in a step some heads."""
        self.some.add(value)
        if value.shape is not None:
            *before, last = value.shape
            width = len(self.rank.share(last, "columns")) if isinstance(last, int) else last
            value.shape = ir.Shape([*before, width])

    def _cut_cache(self, value: ir.Value) -> None:
        if str(value.name).startswith("kv.") and value not in self.some:
            assert value.shape is not None, f"'{value.name}' has no shape"
            pages, heads, *rest = value.shape
            assert isinstance(heads, int), f"'{value.name}' has no number of heads"
            value.shape = ir.Shape([pages, len(self.rank.share(heads, "heads")), *rest])
            self.some.add(value)

    def _product(self, node: ir.Node) -> None:
        x, y = required(node.inputs[0]), node.outputs[0]
        if x in self.some:
            self._cut_weight(node, self._columns)
            self._keep_bias_once(node)
            self.parts.add(y)
            return
        segments = self._segments(y, integer(node, "experts", 1))
        if segments is None:
            return
        rows = np.concatenate([self._part_of(*segment) for segment in segments])
        self._cut_weight(node, lambda value, _: (lambda found: found[rows], (len(rows), *_shape(value)[1:])))
        at = BIAS.get(node.op_type)
        if at is not None and len(node.inputs) > at and node.inputs[at] is not None:
            bias = required(node.inputs[at])
            node.replace_input_with(at, self._picked(bias, lambda found: found[rows], (len(rows),)))
        self._note(y)

    def _part_of(self, first: int, size: int) -> npt.NDArray[np.int64]:
        part = self.rank.share(size, "rows of a weight")
        return first + np.arange(part.start, part.stop)

    def _segments(self, value: ir.Value, experts: int) -> list[tuple[int, int]] | None:
        """Return the runs of columns, (first, size), of which each rank takes a part; None to stay whole."""
        if not self._cuttable(value):
            return None
        width = _width(value)
        one = [(0, width)]
        for node, _ in value.uses():
            if node.op_type == "Split":
                widths = split_widths(node)
                one = [(sum(widths[:at]), size) for at, size in enumerate(widths)]
            elif node.op_type == "GatedActivation":
                one = [(0, width // 2), (width // 2, width // 2)]
        return [(expert * width + first, size) for expert in range(experts) for first, size in one]

    def _cuttable(self, value: ir.Value) -> bool:
        """Return whether all that reads a value can do so with some of its columns."""
        if value.is_graph_output():
            return value.name == "logits" and _width(value) % self.rank.count == 0
        return all(
            node.op_type in {"RopeWriteKV", "PagedAttention", "GatedActivation"}
            or (node.op_type in WEIGHTS and at == 0)
            or (
                node.op_type in ELEMENTWISE | {"Split"} and all(self._cuttable(each) for each in node.outputs)
            )
            for node, at in value.uses()
        )

    def _cut_weight(
        self, node: ir.Node, cut: Callable[[ir.Value, bool], tuple[Pick, tuple[int, ...]] | None]
    ) -> None:
        """Put cut arrays in the place of a product's weight, or of what it is dequantized from."""
        at, count = WEIGHTS[node.op_type]
        maker = required(node.inputs[at]).producer()
        if maker is not None:
            own = ir.node(maker.op_type, list(maker.inputs), dict(maker.attributes), domain=maker.domain)
            own.outputs[0].name = f"{maker.outputs[0].name}.cut"
            self.graph.insert_before(node, own)
            node.replace_input_with(at, own.outputs[0])
            node, at, count = own, 0, 3
        for index in range(at, min(at + count, len(node.inputs))):
            value = node.inputs[index]
            found = None if value is None or value.const_value is None else cut(value, index == at)
            if value is not None and found is not None:
                node.replace_input_with(index, self._picked(value, *found))
        if "block_size" in node.attributes:
            columns = _shape(required(node.inputs[at]))[-1]
            block = min(integer(node, "block_size"), columns)
            node.attributes["block_size"] = ir.AttrInt64("block_size", block)

    def _columns(self, value: ir.Value, weight: bool) -> tuple[Pick, tuple[int, ...]] | None:  # noqa: FBT001
        """Return what takes this rank's columns of a weight, or of its scales; one scale a row is whole."""
        rows, columns = _shape(value)
        if columns == 1:
            return None
        part = self.rank.share(columns, f"columns of '{value.name}'", MULTIPLE if weight else 1)
        return lambda found: found[:, part.start : part.stop], (rows, len(part))

    def _keep_bias_once(self, node: ir.Node) -> None:
        """Leave a bias to the first rank: the sum would have it once a rank."""
        at = BIAS.get(node.op_type)
        if at is not None and len(node.inputs) > at and node.inputs[at] is not None and self.rank.index:
            bias = required(node.inputs[at])
            node.replace_input_with(at, self._picked(bias, np.zeros_like, _shape(bias)))

    def _picked(self, value: ir.Value, pick: Pick, shape: Sequence[int]) -> ir.Value:
        """Return a constant made of another one when it is read, by a name of its own if both are read."""
        stem, dot, part = str(value.name).rpartition(".")
        alone = len(value.uses()) == 1
        name = str(value.name) if alone else f"{stem}.cut{dot}{part}"
        tensor = value.const_value
        assert tensor is not None, f"'{value.name}' is no constant"
        dtype = tensor.dtype
        lazy = ir.LazyTensor(
            lambda: ir.Tensor(np.ascontiguousarray(pick(array(value))), dtype=dtype, name=name),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        found = initializer(lazy, name)
        if alone:
            del self.graph.initializers[name]
        self.graph.register_initializer(found)
        self.own.add(name.removesuffix(".q"))
        return found

    def _meet(self, value: ir.Value, op: str) -> ir.Value:
        """Let ranks meet behind the node that makes a value; return what all of them have then."""
        maker = value.producer()
        assert maker is not None, f"'{value.name}' is made by no node"
        name, shape = str(value.name), list(value.shape or ())
        node = ir.node(op, [value], domain=DOMAIN)
        whole = node.outputs[0]
        if op == JOIN:
            shape[-1] = _width(value) * self.rank.count
        value.name = f"{name}.{'some' if op == JOIN else 'part'}"
        whole.name, whole.type, whole.shape = name, value.type, ir.Shape(shape)
        self.graph.insert_after(maker, node)
        for use in list(value.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, whole)
        self.parts.discard(value)
        return whole


def _width(value: ir.Value) -> int:
    assert value.shape is not None, f"'{value.name}' has no shape"
    last = value.shape[-1]
    assert isinstance(last, int), f"the width of '{value.name}' is not known"
    return last


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None, f"'{value.name}' is no constant"
    return tuple(int(extent) for extent in value.const_value.shape.numpy())
