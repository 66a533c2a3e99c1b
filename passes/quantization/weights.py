"""The weights of a graph: who reads them, and how nodes that read them otherwise take their place."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Generic, TypeVar

import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.rewrite import made_by
from tokc.passes.quantization.grid import NotFinite

MATRIX = 2  # dimensions of a weight
# Which input of a node is the weight.
READ_AT = {("tokc", "Linear"): 1, ("", "Gather"): 0}
EXPERTS_AT = {("tokc", "MoeLinear"): 1}
_Made = TypeVar("_Made")


class Once(Generic[_Made]):
    """Make something when it is first asked for, then keep it and let go of what it was made from."""

    def __init__(self, make: Callable[[], _Made]) -> None:
        """Remember how."""
        self._make: Callable[[], _Made] | None = make
        self._made: _Made | None = None
        self._lock = Lock()

    def __call__(self) -> _Made:
        """Return it, made by this call or an earlier one."""
        with self._lock:
            if self._make is not None:
                self._made = self._make()
                self._make = None
            assert self._made is not None, "nothing was made"
            return self._made


def weight_readers(graph: ir.Graph, *, experts: bool = False) -> dict[ir.Value, list[ir.Node]]:
    """Return every weight that a linear layer or an embedding reads, with the nodes that read it so.

    With `experts` those of layers of experts too.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    read_at = {**READ_AT, **(EXPERTS_AT if experts else {})}
    for node in graph:
        at = read_at.get((node.domain, node.op_type))
        axis = node.attributes.get_int("axis", 0)
        value = None if at is None or axis != 0 else node.inputs[at]
        if value is not None and _is_weight(value):
            readers.setdefault(value, []).append(node)
    return readers


def is_head(nodes: Iterable[ir.Node]) -> bool:
    """Return whether a weight that `nodes` read is an embedding's or the head's."""
    return any(node.op_type == "Gather" or node.outputs[0].is_graph_output() for node in nodes)


@contextmanager
def require_finite(name: str) -> Iterator[None]:
    """Name the weight that is being quantized where it is found to hold what is not finite.

    Raises: PassFailed.
    """
    try:
        yield
    except NotFinite as error:
        where, hint = f"weight '{name}'", "the model's file is damaged"
        raise PassFailed(str(error), where=where, hint=hint) from error


def _is_weight(value: ir.Value) -> bool:
    if made_by(value, "BlockDequantize", "tokc") is not None:
        return True
    tensor = value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == MATRIX


def replace_node(old: ir.Node, new: ir.Node) -> None:
    """Put `new` in the place of `old`; its output takes over name, type and shape."""
    assert old.graph is not None, "a node to replace is in a graph"
    ir.convenience.replace_nodes_and_values(old.graph, old, [old], [new], old.outputs, new.outputs)
