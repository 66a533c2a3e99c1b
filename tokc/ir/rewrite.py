"""Match patterns in a graph and put other nodes in their place.

A rule looks at one node and answers in one of three ways: None (not a candidate), `Missed` (a candidate that
may not be rewritten, and why), or a `Rewrite`. Reasons go to whoever collects remarks.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokc.ir.inference import annotate_shapes
from tokc.ir.ops import make_node
from tokc.ir.program import Program


@dataclass(frozen=True)
class Missed:
    """Say why a candidate is left as it is."""

    node: ir.Node
    reason: str

    def __str__(self) -> str:
        """Name the node by what it makes."""
        return f"{self.node.op_type} '{self.node.outputs[0].name}': {self.reason}"


@dataclass(frozen=True)
class Rewrite:
    """Put `nodes` before the rule's node; each key of `values` is replaced by its value.

    The new values take over names, types and shapes. Readers that come before the rule's node go on reading
    the old value, whose nodes then stay. `initializers` are new weights or constants that the nodes read.
    """

    nodes: Sequence[ir.Node]
    values: Mapping[ir.Value, ir.Value]
    initializers: Sequence[ir.Value] = ()


Answer = None | Missed | Rewrite
Rule = Callable[[ir.Node], Answer]

_remarks: ContextVar[list[Missed] | None] = ContextVar("remarks", default=None)


def remark(missed: Missed) -> None:
    """Give a reason to whoever collects remarks."""
    collected = _remarks.get()
    if collected is not None:
        collected.append(missed)


@contextmanager
def collect_remarks() -> Iterator[list[Missed]]:
    """Collect why passes that run inside left candidates alone."""
    collected: list[Missed] = []
    token = _remarks.set(collected)
    try:
        yield collected
    finally:
        _remarks.reset(token)


def rewrite(program: Program, rule: Rule) -> Program:
    """Apply a rule at every node, in order; return the very same program if it never fires."""
    copy = program.copy()
    graph, fired = copy.graph, False
    annotate_shapes(graph)
    for node in list(graph):
        if node.graph is None:
            continue  # an earlier rewrite removed it
        answer = rule(node)
        if isinstance(answer, Rewrite):
            _apply(graph, node, answer)
            fired = True
        elif isinstance(answer, Missed):
            remark(answer)
    if not fired:
        return program
    annotate_shapes(graph)
    return copy


def _apply(graph: ir.Graph, anchor: ir.Node, change: Rewrite) -> None:
    for value in change.initializers:
        if str(value.name) not in graph.initializers:
            graph.register_initializer(value)
    for old, new in change.values.items():
        name = str(old.name)
        old.name, new.name = f"{name}.before", name
        new.type, new.shape = old.type or new.type, old.shape or new.shape
    earlier = set(itertools.takewhile(lambda node: node is not anchor, graph))
    graph.insert_before(anchor, list(change.nodes))
    for old, new in change.values.items():
        for use in list(old.uses()):
            if use.node not in earlier and use.node not in change.nodes:
                use.node.replace_input_with(use.idx, new)
        graph.outputs[:] = [new if output is old else output for output in graph.outputs]
    for old in change.values:
        drop(graph, old)


def drop(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove the node or initializer behind a value that nobody reads, and then those behind its inputs."""
    if value is None or value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        if value.is_initializer():
            graph.initializers.pop(str(value.name), None)
        return
    if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    operands = list(node.inputs)
    graph.remove(node, safe=True)
    for operand in operands:
        drop(graph, operand)


def made_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the node that makes a value if it is such an op."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.op_type, node.domain) == (op_type, domain) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read a value, each once, in no particular order."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def only_reader(value: ir.Value, op_type: str, domain: str = "") -> ir.Node | None:
    """Return the one node that reads a value, if it is such an op and the value is no output."""
    found = readers(value)
    if len(found) != 1 or value.is_graph_output():
        return None
    return found[0] if (found[0].op_type, found[0].domain) == (op_type, domain) else None


def scalar(value: ir.Value | None) -> float | None:
    """Return the number that a constant of one element holds."""
    node = made_by(value, "Constant")
    tensor = None if value is None else value.const_value
    if tensor is None and node is not None:
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).reshape(()))


def constant_input(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Split a commutative node of two inputs into its computed input and its scalar."""
    for index in (0, 1):
        number, other = scalar(node.inputs[index]), node.inputs[1 - index]
        if number is not None and other is not None:
            return other, number
    return None


PARTS = "parts"  # in a tensor's meta: the tensors that it is put together from, row below row
STORED_AS = "stored as"  # in the meta of codes: their type in the model's file, and its bits a weight


def parts_of(tensor: ir.TensorProtocol) -> tuple[ir.TensorProtocol, ...]:
    """Return the tensors that one is put together from, row below row; itself if it is not."""
    parts: tuple[ir.TensorProtocol, ...] = tensor.meta.get(PARTS, (tensor,))
    return parts


def stored_alike(made: ir.LazyTensor, sources: Sequence[ir.TensorProtocol]) -> ir.LazyTensor:
    """Return codes that were made of others, with the form in which the file has them if all share one."""
    forms = {source.meta.get(STORED_AS) for source in sources}
    if len(forms) == 1 and None not in forms:
        made.meta[STORED_AS] = forms.pop()
    return made


def initializer(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Make a value that stands for a constant."""
    shape = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


@dataclass(frozen=True)
class Stacked:
    """Hold weights stacked by rows: the new initializers, the nodes that unpack them, and the result."""

    weight: ir.Value
    nodes: tuple[ir.Node, ...]
    initializers: tuple[ir.Value, ...]


def stack_weights(weights: Sequence[ir.Value], name: str) -> Stacked | str:
    """Stack weights [N, K] by rows, lazily; return why not if they are stored differently."""
    grids = [made_by(weight, "BlockDequantize", "tokc") for weight in weights]
    if not any(grids):
        if any(weight.const_value is None for weight in weights):
            return "a weight is computed"
        stacked = stack_initializers(weights, name)
        return stacked if isinstance(stacked, str) else Stacked(stacked, (), (stacked,))
    known = [node for node in grids if node is not None]
    if len(known) != len(grids):
        return "some weights are on a grid and some are not"
    attributes = [
        {
            key: node.attributes.get_int(key, default)
            for key, default in (("zero_point", 0), ("block_size", 32))
        }
        for node in known
    ]
    arity = {tuple(value is not None for value in node.inputs) for node in known}
    if attributes.count(attributes[0]) != len(attributes) or len(arity) != 1:
        return "the weights are on different grids"
    parts: list[ir.Value] = []
    for index, suffix in enumerate((".q", ".scale", ".offset")[: len(known[0].inputs)]):
        part = stack_initializers([node.inputs[index] for node in known], f"{name}{suffix}")
        if isinstance(part, str):
            return part
        parts.append(part)
    node = make_node("BlockDequantize", parts, attributes[0])
    node.outputs[0].name = name
    return Stacked(node.outputs[0], (node,), tuple(parts))


def stack_initializers(values: Sequence[ir.Value | None], name: str) -> ir.Value | str:
    """Concatenate constants along their first axis when they are read; return why not if they differ."""
    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    if len(tensors) != len(values):
        return "a weight is computed"
    shapes = [[int(dim) for dim in tensor.shape.numpy()] for tensor in tensors]
    if len({tensor.dtype for tensor in tensors}) != 1 or len({tuple(shape[1:]) for shape in shapes}) != 1:
        return "the weights have different types or widths"
    dtype = tensors[0].dtype

    def stack() -> ir.TensorProtocol:
        array = np.concatenate([np.asarray(tensor.numpy()) for tensor in tensors])
        return ir.Tensor(array, dtype=dtype, name=name)

    shape = ir.Shape([sum(shape[0] for shape in shapes), *shapes[0][1:]])
    stacked = ir.LazyTensor(stack, dtype=dtype, shape=shape, name=name)
    return initializer(stored_alike(stacked, tensors), name)
