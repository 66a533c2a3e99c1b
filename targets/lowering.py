"""What lowering to a Plan keeps track of, whatever the target: buffers, launches and where values live."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.ir.head import FEATURES, FEATURES_OUT
from tokc.ir.program import Program
from tokc.ir.verify import TREE_INPUTS
from tokc.targets.constants import refuse_format
from tokc.targets.nodes import refuse_attributes, required, split_widths
from tokc.targets.plan import ITEM_BYTES, Buffer, Launch, Operand, Plan, Rows

Float = Literal["f32", "f16"]
INPUT_SHAPES: Mapping[str, tuple[str, ...]] = {
    "input_ids": ("tokens",),
    "positions": ("tokens",),
    "sequences": ("tokens",),
    "block_tables": ("seqs", "blocks"),
    **dict.fromkeys(TREE_INPUTS, ("tokens",)),
    "logit_rows": ("rows",),
}
STEP_OUTPUTS = ("logits", FEATURES, FEATURES_OUT)  # the rest is the cache, updated in place
CACHE_DTYPES = {
    ir.DataType.FLOAT: "f32",
    ir.DataType.FLOAT16: "f16",
    ir.DataType.INT8: "i8",
    ir.DataType.UINT8: "u8",
}


@dataclass(frozen=True)
class Slot:
    """Where a value lives: a column range of a row-major buffer; widths in elements."""

    buffer: str
    width: int
    stride: int
    column: int = 0
    rows: Rows = "tokens"
    dtype: Float = "f32"

    @property
    def operand(self) -> Operand:
        """Return the pointer to its first element."""
        return Operand(self.buffer, self.column * ITEM_BYTES[self.dtype])


@dataclass
class Lowering:
    """What has been emitted so far; `limits` bounds tokens and logit rows of a step."""

    program: Program
    limits: Mapping[str, int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    slots: dict[ir.Value, Slot] = field(default_factory=dict)

    def buffer(self, buffer: Buffer) -> Operand:
        """Add a buffer once and return its pointer."""
        self.buffers.setdefault(buffer.name, buffer)
        return Operand(buffer.name)

    def activation(
        self, value: ir.Value, width: int, rows: Rows, stride: int | None = None, dtype: Float = "f32"
    ) -> Operand:
        """Give `value` an arena buffer [rows, stride]."""
        slot = Slot(f"a.{value.name}", width, stride or width, rows=rows, dtype=dtype)
        self.slots[value] = slot
        return self.buffer(Buffer(slot.buffer, "arena", dtype, (rows, slot.stride)))

    def weight(self, packed: Tensor) -> Operand:
        """Return the pointer to a packed weight, adding it once; files hold weights in this order."""
        self.tensors.setdefault(packed.name, packed)
        return self.buffer(Buffer(packed.name, "weights", packed.dtype, packed.shape))

    def input(self, name: str) -> Operand:
        """Return the pointer to an input of the step."""
        return self.buffer(Buffer(name, "input", "i32", INPUT_SHAPES[name]))

    def page_layout(self) -> tuple[int, str]:
        """Return the page size and dtype of the cache."""
        if self.program.kv is None:
            raise AssertionError("a ragged program has a cache layout")
        return self.program.kv.page, self.program.kv.dtype

    def caches(self, values: tuple[ir.Value | None, ...]) -> tuple[Operand, ...]:
        """Return pointers to the cache tensors of a layer, in place."""
        operands = []
        for value in values:
            if value is None:
                continue
            name = (value.name or "").removesuffix(".out")
            source = next(v for v in self.program.graph.inputs if v.name == name)
            shape = tuple(d if isinstance(d, int) else "pages" for d in required(source).shape or ())
            dtype = CACHE_DTYPES[source.dtype or ir.DataType.FLOAT]
            operands.append(self.buffer(Buffer(name, "kv", dtype, shape)))
        return tuple(operands)

    def plan(self, kernels: Iterable[str]) -> Plan:
        """Return what was emitted, logits and features as the step's outputs; the arena is not yet placed."""
        for value in self.program.graph.outputs:
            if value.name in STEP_OUTPUTS and value in self.slots:
                made = self.slots[value].buffer
                self.buffers[made] = replace(self.buffers[made], space="output")
        return Plan(
            limits=dict(self.limits),
            kernels=tuple(kernels),
            buffers=tuple(self.buffers.values()),
            launches=tuple(self.launches),
        )


_Low = TypeVar("_Low", bound=Lowering)
Rules = Mapping[tuple[str, str], Callable[[_Low, ir.Node], None]]


def lower_nodes(
    low: _Low,
    rules: Rules[_Low],
    *,
    lacks: str,
    hint: str,
    formats: frozenset[str] = frozenset(),
    reads: frozenset[str] = frozenset(),
) -> None:
    """Lower every node by the rule of its op, given by (domain, op).

    Rules know weights in `formats`, and the attributes `reads` besides those that all targets read.

    Raises: TargetRefused where there is none: `lacks` says so up to the op's name, `hint` what there is.
    """
    for node in low.program.graph:
        refuse_format(node, lacks=lacks, runs=formats)
        refuse_attributes(node, lacks=lacks, reads=reads)
        lower = rules.get((node.domain, node.op_type))
        if lower is None:
            raise TargetRefused(f"{lacks} '{node.op_type}'", where=f"node '{node.name}'", hint=hint)
        lower(low, node)


def lower_split(low: Lowering, node: ir.Node) -> None:
    """Make each output of a Split a view."""
    source = low.slots[required(node.inputs[0])]
    column = source.column
    for value, width in zip(node.outputs, split_widths(node), strict=True):
        low.slots[value] = replace(source, width=width, column=column)
        column += width


def skip(low: Lowering, node: ir.Node) -> None:
    """Leave a node that its readers take in as a whole."""
