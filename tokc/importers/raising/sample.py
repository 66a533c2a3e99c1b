"""A graph at concrete sizes: what is then constant is computed, of the rest the shapes are known.

The importer gives every input a size, and positions and padding mask their values. All that serves shapes,
masks and rotary angles becomes constant then, however an exporter spells it. What is left are the products
with weights and what lies between them: the model's arithmetic.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.shape_inference
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from tokc.importers.raising.functions import gelu
from tokc.importers.raising.mismatch import Unmatched

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]
Result = TypeVar("Result")

DATA_LIMIT = 4096  # elements; no shape has more
MATRIX = 2
# Larger constants of these types are still computed with: masks that a model carries along.
INDEX_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True)
class Size:
    """State how large a sample is; `past` and `seq` in tokens."""

    batch: int
    past: int
    seq: int

    @property
    def total(self) -> int:
        """Return the tokens that are attended to."""
        return self.past + self.seq


class Sample:
    """Hold every value of a graph: `known` numbers, a weight, or an activation of known shape.

    Raises: Unmatched for an op that ONNX does not define, or a shape that depends on an activation's values.
    """

    def __init__(
        self, model: ir.Model, size: Size, known: Mapping[str, Array], shapes: Mapping[str, Shape]
    ) -> None:
        self.graph, self.size = model.graph, size
        self.known: dict[ir.Value, Array] = {}
        self.shapes: dict[ir.Value, Shape] = {}
        self.active: set[ir.Value] = set()
        self._types: dict[ir.Value, int] = {}
        self._sampled: set[ir.Value] = set()
        self._opsets = dict(model.opset_imports)
        self._imports = [onnx.helper.make_opsetid(name, version) for name, version in self._opsets.items()]
        for value in self.graph.inputs:
            self._input(value, known, shapes)
        for value in self.graph.initializers.values():
            if value not in self.shapes:
                self._constant(value, value.const_value)
        for node in self.graph:
            self._visit(node)

    def array(self, value: ir.Value) -> Array:
        """Return the numbers of a weight or of a known value; those of a weight are computed anew."""
        if value in self.known:
            return self.known[value]
        node = value.producer()
        tensor = value.const_value if node is None else _constant_of(node)
        if tensor is not None:
            return tensor.numpy()
        if node is None or value in self.active:
            raise AssertionError(f"'{value.name}' is no weight")
        return self._run(node, {v: self.array(v) for v in node.inputs if v is not None})[value.index() or 0]

    def is_weight(self, value: ir.Value | None) -> bool:
        """Return whether a value is computed of weights alone."""
        return value is not None and value not in self.active and value not in self.known

    def at_positions(self, index: ir.Value) -> bool:
        """Return whether a value holds the positions of the tokens of each sequence."""
        wanted = np.broadcast_to(np.arange(self.size.past, self.size.total), (self.size.batch, self.size.seq))
        if index not in self.known:
            return False
        found = self.known[index]
        shapes = (wanted.shape, (1, self.size.seq))
        return found.shape in shapes and np.array_equal(np.broadcast_to(found, wanted.shape), wanted)

    def compute(self, value: ir.Value, given: Mapping[ir.Value, Array]) -> Array:
        """Compute an activation of others that are given."""
        results = dict(given)

        def visit(wanted: ir.Value) -> Array:
            if wanted not in results:
                node = wanted.producer()
                if wanted not in self.active or node is None:
                    return self.array(wanted)
                arrays = self._run(node, {v: visit(v) for v in node.inputs if v is not None})
                results.update(zip(node.outputs, arrays, strict=False))
            return results[wanted]

        return visit(value)

    def _input(self, value: ir.Value, known: Mapping[str, Array], shapes: Mapping[str, Shape]) -> None:
        name = str(value.name)
        if name in known:
            self._know(value, known[name])
            self._sampled.add(value)
        else:
            self.active.add(value)
            self.shapes[value] = shapes[name]
            self._types[value] = int(value.dtype or ir.DataType.FLOAT)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        if tensor is None:
            raise Unmatched(value, "an initializer with a value")
        if tensor.size == 1 or tensor.dtype in INDEX_TYPES:
            self._know(value, tensor.numpy())
        else:
            self.shapes[value] = tuple(int(str(dim)) for dim in tensor.shape)
            self._types[value] = int(tensor.dtype)

    def _know(self, value: ir.Value, array: Array) -> None:
        self.known[value] = array
        self.shapes[value] = array.shape
        self._types[value] = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))

    def _visit(self, node: ir.Node) -> None:
        operands = [value for value in node.inputs if value is not None]
        tensor = _constant_of(node)
        if tensor is not None:
            self._constant(node.outputs[0], tensor)
        elif (node.domain, node.op_type) == ("", "Shape"):
            shape = np.array(self.shapes[operands[0]], dtype=np.int64)
            end = node.attributes.get_int("end", len(shape))
            self._computed(node, [shape[node.attributes.get_int("start", 0) : end]], sampled=True)
        elif any(value in self.active for value in operands) or self._looks_up(node):
            self._infer(node)
            self.active.update(node.outputs)
        elif any(value in self._sampled for value in operands) or all(v in self.known for v in operands):
            arrays = self._run(node, {value: self.array(value) for value in operands})
            self._computed(node, arrays, sampled=any(value in self._sampled for value in operands))
        else:
            self._infer(node)

    def _computed(self, node: ir.Node, arrays: "list[Array]", *, sampled: bool) -> None:
        for value, array in zip(node.outputs, arrays, strict=False):
            self._know(value, np.asarray(array))
            if sampled:
                self._sampled.add(value)

    def _looks_up(self, node: ir.Node) -> bool:
        """Return whether a node takes rows of a weight by position, as learned embeddings do."""
        if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[1] not in self._sampled:
            return False
        table = node.inputs[0]
        return self.is_weight(table) and len(self.shapes[table]) == MATRIX

    def _infer(self, node: ir.Node) -> None:
        operands = [value for value in node.inputs if value is not None]
        types = {
            str(value.name): onnx.helper.make_tensor_type_proto(self._types[value], self.shapes[value])
            for value in operands
        }
        data = {
            str(value.name): onnx.numpy_helper.from_array(self.known[value], str(value.name))
            for value in operands
            if value in self.known and self.known[value].size <= DATA_LIMIT
        }
        found = self._guarded(node, lambda: self._inferred(node, types, data))
        for value in node.outputs:
            result = found.get(str(value.name))
            if result is None or not value.name:
                continue
            dims = [
                dim.dim_value if dim.HasField("dim_value") else -1 for dim in result.tensor_type.shape.dim
            ]
            if -1 in dims or not result.tensor_type.HasField("shape"):
                raise Unmatched(value, "an op whose result's shape follows from shapes")
            self.shapes[value] = tuple(dims)
            self._types[value] = result.tensor_type.elem_type

    def _inferred(
        self, node: ir.Node, types: Mapping[str, onnx.TypeProto], data: Mapping[str, onnx.TensorProto]
    ) -> dict[str, onnx.TypeProto]:
        schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
        proto = ir.serde.serialize_node(node)
        return dict(
            onnx.shape_inference.infer_node_outputs(
                schema, proto, dict(types), dict(data), opset_imports=self._imports
            )
        )

    def _run(self, node: ir.Node, given: Mapping[ir.Value, Array]) -> list[Array]:
        if (node.domain, node.op_type) == ("", "Gelu"):  # which onnx cannot compute by itself
            x = np.asarray(next(iter(given.values())))
            approximate = node.attributes.get_string("approximate", "none") == "tanh"
            return [gelu(x.astype(np.float64), approximate=approximate).astype(x.dtype)]
        feeds = {str(value.name): array for value, array in given.items()}

        def run() -> list[Array]:
            evaluator = ReferenceEvaluator(ir.serde.serialize_node(node), opsets=self._opsets)
            return [np.asarray(result) for result in evaluator.run(None, feeds)]

        return self._guarded(node, run)

    @staticmethod
    def _guarded(node: ir.Node, compute: Callable[[], Result]) -> Result:
        try:
            return compute()
        except Exception as error:  # onnx raises a dozen kinds, RuntimeError and its own among them
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            expected = f"an op that ONNX defines and can compute; '{name}' says {str(error).splitlines()[0]}"
            raise Unmatched(node.outputs[0], expected) from error


def _constant_of(node: ir.Node) -> ir.TensorProtocol | None:
    if (node.domain, node.op_type) != ("", "Constant"):
        return None
    return ir.convenience.get_const_tensor(node.outputs[0])
