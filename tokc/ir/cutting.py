"""Cuts a decoder into parts that run one after another and hand on nothing but the residual stream.

A value of the stream is one that every path from the token ids to the logits goes through. Between two of
them lies half a decoder layer, attention or MLP, or a whole one where these are computed side by side. What
does not depend on the tokens (masks, angles) is no part of those paths: it is computed where it is read, or
handed on where it takes its shape from an earlier part.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.program import IR_VERSION, OPSET, Program
from tokc.ir.rewrite import initializer

Array = npt.NDArray[np.generic]

ANYWHERE = -1  # the home of a value that takes nothing of the stream
# Inputs of which an op reads the shape only.
_SHAPE_READERS: Mapping[tuple[str, str], int] = {("", "Shape"): 0, ("tokc", "CausalMask"): 1}


@dataclass(frozen=True)
class Part:
    """Nodes between two cuts, in order, with the values of the stream that enter and leave them."""

    nodes: tuple[ir.Node, ...]
    entering: tuple[ir.Value, ...]
    leaving: tuple[ir.Value, ...]


class CutProgram:
    """Hold a program of batch form cut at its residual stream, a part for each cut that has a wanted node.

    What comes before the first wanted node is a part of its own, the embedding; what comes after the last
    one is in no part.
    """

    def __init__(self, program: Program, wanted: Collection[ir.Node]) -> None:
        """Cut `program` so that each part has few of the nodes `wanted`.

        Raises: PassFailed if two attentions are in one part, or something bypasses the stream.
        """
        self.source = program
        self._stream = _between(program.graph.inputs[0], program.graph.outputs[0])
        self.parts = tuple(_joined(_cut(self._stream), frozenset(wanted)))
        _require_cuts(self.parts)
        self._part = {node: index for index, part in enumerate(self.parts) for node in part.nodes}
        self._homes: dict[ir.Value, int] = {}
        self._beside = [self._nodes_beside(index) for index in range(len(self.parts))]

    def handed_on(self, index: int) -> tuple[ir.Value, ...]:
        """Return the values beside the stream that are to be kept of this part for later ones."""
        later = [value for _, taken in self._beside[index + 1 :] for value in taken]
        return tuple(dict.fromkeys(value for value in later if self._homes[value] == index))

    def program(
        self, index: int, outputs: Iterable[ir.Value], constants: Mapping[ir.Value, Array]
    ) -> Program:
        """Return one part as a program with the outputs wished for.

        `constants` are taken for the values that they are keyed by, whatever makes these.
        """
        part, (beside, taken) = self.parts[index], self._beside[index]
        nodes = set(part.nodes) | beside
        inputs = [_like(value) for value in (*self.source.graph.inputs, *part.entering, *taken)]
        made = {value: initializer(ir.tensor(array), str(value.name)) for value, array in constants.items()}
        known = {
            **dict(zip((*self.source.graph.inputs, *part.entering, *taken), inputs, strict=True)),
            **made,
        }
        copies = [_copied(node, known) for node in self.source.graph if node in nodes]
        constant = [value for value in known.values() if value.const_value is not None]
        graph = ir.Graph(
            [one for one in inputs if one.uses()],
            [known[value] for value in outputs],
            nodes=[node for node in copies if node is not None],
            initializers=[value for value in constant if value.uses()],
            opset_imports={"": OPSET, "tokc": 1},
            name=f"part_{index}",
        )
        return self.source.replace(model=ir.Model(graph, ir_version=IR_VERSION))

    def _nodes_beside(self, index: int) -> tuple[set[ir.Node], tuple[ir.Value, ...]]:
        """Return the nodes beside the stream that a part computes for itself, and the values it is handed."""
        part = self.parts[index]
        nodes: set[ir.Node] = set()
        taken: dict[ir.Value, None] = {}
        waiting = [value for node in part.nodes for value in node.inputs]
        while waiting:
            value = waiting.pop()
            node = None if value is None else value.producer()
            if value is None or node is None or value in part.entering or node in nodes:
                continue
            if node in self._stream:
                if self._part.get(node) != index:
                    raise PassFailed(f"'{value.name}' bypasses the residual stream between two layers")
                continue
            if self._home(value) in {ANYWHERE, index}:
                nodes.add(node)
                waiting.extend(node.inputs)
            else:
                taken[value] = None
        return nodes, tuple(taken)

    def _home(self, value: ir.Value) -> int:
        """Return the part from which on a value beside the stream is known."""
        pending = [value]
        while pending:
            node = pending[-1].producer()
            if pending[-1] in self._homes or node is None:
                self._homes.setdefault(pending.pop(), ANYWHERE)
                continue
            if node in self._stream:
                self._homes[pending.pop()] = self._part[node]
                continue
            operands = [operand for operand in node.inputs if operand is not None]
            unknown = [operand for operand in operands if operand not in self._homes]
            if unknown:
                pending.extend(unknown)
                continue
            homes = [self._homes[operand] for operand in operands]
            self._homes[pending.pop()] = max(homes, default=ANYWHERE)
        return self._homes[value]


def _between(start: ir.Value, end: ir.Value) -> dict[ir.Node, None]:
    """Return the nodes on a path of data from `start` to `end`, in order."""
    graph = end.producer()
    assert graph is not None, "the logits are computed"
    assert graph.graph is not None, "the node is in a graph"
    order = list(graph.graph)
    after: set[ir.Value] = {start}
    for node in order:
        if any(value in after for value in _data(node)):
            after.update(node.outputs)
    before: set[ir.Value] = {end}
    found: list[ir.Node] = []
    for node in reversed(order):
        if any(value in before for value in node.outputs) and any(value in after for value in _data(node)):
            before.update(value for value in _data(node) if value in after)
            found.append(node)
    return dict.fromkeys(reversed(found))


def _data(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of which a node reads more than the shape."""
    passed_over = _SHAPE_READERS.get((node.domain, node.op_type))
    return [value for at, value in enumerate(node.inputs) if value is not None and at != passed_over]


def _cut(stream: Mapping[ir.Node, None]) -> list[Part]:
    """Cut behind every node whose outputs are all that later nodes of the stream read."""
    last: dict[ir.Value, int] = {}
    for place, node in enumerate(stream):
        last |= dict.fromkeys(_data(node), place)
    parts: list[Part] = []
    nodes: list[ir.Node] = []
    live: set[ir.Value] = set()
    entering: tuple[ir.Value, ...] = ()
    for place, node in enumerate(stream):
        nodes.append(node)
        live = {value for value in (*live, *node.outputs) if last.get(value, -1) > place}
        if live <= set(node.outputs):
            leaving = tuple(value for value in node.outputs if value in live)
            parts.append(Part(tuple(nodes), entering, leaving))
            nodes, entering = [], leaving
    return parts


def _joined(parts: list[Part], wanted: frozenset[ir.Node]) -> list[Part]:
    """Join parts until each but the first has a wanted node; leave out what comes after the last of them."""
    has = [not wanted.isdisjoint(part.nodes) for part in parts]
    if not any(has):
        return []
    first, last = has.index(True), len(has) - 1 - has[::-1].index(True)
    runs = [parts[:first]] if first else []
    runs.append([])
    for index in range(first, last + 1):
        runs[-1].append(parts[index])
        if has[index] and index < last:
            runs.append([])
    return [
        Part(tuple(node for part in run for node in part.nodes), run[0].entering, run[-1].leaving)
        for run in runs
    ]


def _require_cuts(parts: Iterable[Part]) -> None:
    for part in parts:
        attentions = [node.outputs[0].name for node in part.nodes if node.op_type in {"Attention", "Softmax"}]
        if len(attentions) > 1:
            raise PassFailed(
                f"no residual stream is found between the attentions '{attentions[0]}' and "
                f"'{attentions[1]}': more than one value goes from layer to layer",
                hint="methods without calibration take any graph: method=rtn-mse or method=hqq",
            )


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type or ir.TensorType(ir.DataType.FLOAT), shape=value.shape)


def _copied(node: ir.Node, known: dict[ir.Value, ir.Value]) -> ir.Node | None:
    """Return a copy of a node that reads copies; None if all that it makes is known."""
    if all(output in known for output in node.outputs):
        return None
    operands: list[ir.Value | None] = []
    for value in node.inputs:
        if value is not None and value not in known:
            assert value.const_value is not None, f"'{value.name}' is neither computed nor given"
            known[value] = initializer(value.const_value, str(value.name))
        operands.append(None if value is None else known[value])
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    copy = ir.Node(node.domain, node.op_type, operands, node.attributes, outputs=outputs, name=node.name)
    known |= dict(zip(node.outputs, outputs, strict=True))
    return copy
