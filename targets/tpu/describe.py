"""Describes a ragged program as a Step, and its weights as tensors to be written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.artifact.writer import Tensor
from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.targets.constants import array, quants, refuse_format
from tokc.targets.nodes import integer, layer_of, refuse_attributes, required, split_widths
from tokc.targets.tpu.sharding import COLUMNS, ROWS, WHOLE, Shardings, shardings
from tokc.targets.tpu.step import LANES, Attribute, Axes, Bucket, Cache, Node, Step, Weight

SUPPORTED = frozenset(
    {
        *("Add", "AddRmsNorm", "BlockDequantize", "Cast", "Div", "GatedActivation", "Gather", "Gelu"),
        *("Identity", "Linear", "MatMul", "Mul", "PagedAttention", "QuantEmbedding", "QuantLinear"),
        *("RMSNormalization", "RopeWriteKV", "Sigmoid", "Split", "Sub", "Tanh"),
    }
)
GRID_READERS = frozenset({"QuantLinear", "QuantEmbedding", "BlockDequantize"})
MATRIX_READERS = frozenset({"Linear", "MatMul", "Gather"})
COPY = ".turned"  # ends the name of a table's copy that lies [k, n]
_CUTS: Mapping[Axes, str] = {WHOLE: "whole", COLUMNS: "columns", ROWS: "rows"}
SIGNED_ZERO = 8  # the zero point of uint4 codes that become int4 by subtracting it
BATCH = ("positions", "sequences", "block_tables")
FILE_DTYPES: Mapping[str, str] = {"float32": "f32", "float16": "f16", "int8": "i8", "bfloat16": "bf16"}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Platform:
    """What differs between platforms: the dtype of products, whose kernels, and how many chips.

    `kernels` is "xla", or "pallas" for those that have one.
    """

    name: str
    compute: str
    kernels: str = "xla"
    chips: int = 1

    def cache_dtype(self, dtype: str) -> str:
        """Return JAX's name of a cache dtype; 16 bits are bfloat16 where products are."""
        short = "bfloat16" if self.compute == "bfloat16" else "float16"
        return {"f32": "float32", "f16": short, "int8": "int8"}[dtype]

    def attention(self, cache_dtype: str) -> str:
        """Return the row that attends; JAX's kernel knows no scales of single tokens."""
        return self.kernels if cache_dtype == "bfloat16" else "xla"


def tpu_platform(chips: int) -> Platform:
    """Return the platform of so many chips of any TPU."""
    return Platform("tpu", "bfloat16", "pallas", chips)


@dataclass(frozen=True)
class Described:
    """A step, and its weights as they are written."""

    step: Step
    tensors: tuple[Tensor, ...]


def describe(program: Program, platform: Platform, context: int, buckets: tuple[Bucket, ...]) -> Described:
    """Return the step of a ragged program for a platform.

    Raises: TargetRefused if the program is not ragged, holds an op that has no row, or rounds activations.
    """
    if program.form != "ragged" or program.kv is None:
        raise TargetRefused("XLA targets run ragged programs only", hint="add kv-layout to the passes")
    if program.kv.dtype == "int4":
        raise TargetRefused("XLA targets have no row for a cache in int4", hint="the nearest is int8")
    axes = shardings(program, platform.chips)
    cache = _cache(program, platform, context, cut=any(axes.attention))
    weights = [_Constant(value, platform) for value in program.graph.initializers.values() if _read(value)]
    weights += [
        _Constant(value, platform, copy=True) for value in _read_by_kernels_and_as_rows(program, platform)
    ]
    nodes = tuple(_node(node, platform, axes) for node in program.graph)
    config = program.config
    step = Step(
        platform=platform.name,
        compute=platform.compute,
        attention=platform.attention(cache.dtype),
        products=platform.kernels,
        chips=platform.chips,
        vocab=config.vocab,
        head_dim=config.head_dim,
        cache=cache,
        nodes=nodes,
        weights=tuple(each.described(axes.weights.get(str(each.value.name), ())) for each in weights),
        buckets=buckets,
        logits=str(program.graph.outputs[0].name),
    )
    return Described(step, tuple(each.tensor() for each in weights))


def combined_heads_fit(kv_heads: int, itemsize: int) -> bool:
    """Return whether a cache of so many heads lies in whole tiles, as JAX's attention kernel wants it."""
    rows, left = divmod(2 * kv_heads, 4 // itemsize)
    return left == 0 and (rows in {1, 2, 4, 8} or rows % 8 == 0)


def _cache(program: Program, platform: Platform, context: int, *, cut: bool) -> Cache:
    config, kv = program.config, program.kv
    assert kv is not None, "a ragged program has a cache layout"
    dtype = platform.cache_dtype(kv.dtype)
    heads, dim = config.kv_heads, config.head_dim
    if platform.attention(dtype) == "pallas":
        dim = -(-dim // LANES) * LANES
        chips = platform.chips if cut else 1
        while not combined_heads_fit(heads // chips, 2):
            heads += chips
    axes: Axes = (None, None, "tp" if cut else None, None)
    blocks = -(-context // kv.page)
    return Cache(config.layers, kv.page, heads, dim, dtype, blocks, axes)


def _read(value: ir.Value) -> bool:
    """Return whether a row reads the constant; widths of a Split are attributes instead."""
    return any(not (node.op_type == "Split" and at == 1) for node, at in value.uses())


def _transposed(value: ir.Value) -> bool:
    """Return whether a grid's tensor lies [k, n]: only products read it, and no rows are gathered from it."""
    readers = [(node.op_type, at) for node, at in value.uses()]
    return all(op == "QuantLinear" and at in {1, 2, 3} for op, at in readers)


def _read_by_kernels_and_as_rows(program: Program, platform: Platform) -> list[ir.Value]:
    """Return what both a product and an embedding read, of which kernels want a copy that lies [k, n]."""
    if platform.kernels != "pallas":
        return []
    shared: dict[str, ir.Value] = {}
    for node in program.graph:
        if node.op_type == "QuantLinear" and not _transposed(required(node.inputs[1])):
            shared |= {str(value.name): value for value in node.inputs[1:4] if value is not None}
    return list(shared.values())


def _node(node: ir.Node, platform: Platform, axes: Shardings) -> Node:
    """Return one op as data.

    Raises: TargetRefused if no row computes it.
    """
    refuse_format(node, lacks="XLA targets have no row for")
    refuse_attributes(node, lacks="XLA targets have no row for")
    if node.op_type not in SUPPORTED:
        raise TargetRefused(
            f"XLA targets have no row for '{node.op_type}'",
            where=f"node '{node.name}'",
            hint="they run the forms that the default passes leave",
        )
    inputs = [None if value is None else str(value.name) for value in node.inputs]
    outputs = [str(value.name) for value in node.outputs]
    attributes: dict[str, Attribute] = {
        name: attribute.value for name, attribute in node.attributes.items() if name not in {"axis", "to"}
    }
    match node.op_type:
        case "QuantLinear":
            attributes |= _grid(node)
            attributes["cut"] = _CUTS[axes.weights.get(str(inputs[1]), WHOLE)]
            if platform.kernels == "pallas" and not attributes["transposed"]:
                attributes["transposed"] = True
                inputs[1:4] = [name and f"{name}{COPY}" for name in inputs[1:4]]
        case "QuantEmbedding" | "BlockDequantize":
            attributes |= _grid(node)
        case "Split":
            attributes = {"widths": list(split_widths(node))}
            inputs = inputs[:1]
        case "RopeWriteKV":
            attributes["layer"] = _layer(node)
            inputs = [*inputs[:5], *inputs[12:]]
            outputs = outputs[:1]
        case "PagedAttention":
            attributes["layer"] = _layer(node)
            inputs = inputs[:1]
    return Node(node.op_type, tuple(inputs), tuple(outputs), attributes)


def _grid(node: ir.Node) -> dict[str, Attribute]:
    """Return the attributes of an op over a grid, and check that its activations are not rounded."""
    at = 0 if node.op_type == "BlockDequantize" else 1
    q = required(node.inputs[at])
    if node.op_type == "QuantLinear" and integer(node, "act_group", 32):
        raise TargetRefused(
            f"QuantLinear with act_group={integer(node, 'act_group', 32)} does not run on XLA targets",
            where=f"node '{node.name}'",
            hint="use quantize-weights{act_group=0}: activations stay as they are",
        )
    zero = integer(node, "zero_point")
    symmetric = q.dtype == ir.DataType.UINT4 and zero == SIGNED_ZERO
    if not symmetric and zero:
        raise TargetRefused(
            f"XLA targets have no row for weights of {q.dtype} around {zero}",
            where=f"node '{node.name}'",
            hint="they run uint4 around 8, uint4 with an offset, and int8 around 0",
        )
    return {
        "block_size": integer(node, "block_size", 32),
        "signed": symmetric or q.dtype == ir.DataType.INT4,
        "transposed": _transposed(q),
    }


def _layer(node: ir.Node) -> int:
    layer = layer_of(node)
    assert layer is not None, f"'{node.op_type}' names no layer"
    return layer


class _Constant:
    """One constant of the program, on its way to the file."""

    def __init__(self, value: ir.Value, platform: Platform, *, copy: bool = False) -> None:
        self.value = value
        self.name = f"{value.name}{COPY}" if copy else str(value.name)
        self.platform = platform
        assert value.const_value is not None, f"'{self.name}' is no constant"
        self.plain = tuple(int(extent) for extent in value.const_value.shape.numpy())
        readers = {(node.op_type, at) for node, at in value.uses()}
        ops = {op for op, _ in readers}
        self.grid = bool(ops & GRID_READERS) and len(self.plain) == 2
        self.turned = copy or (self.grid and _transposed(value))
        self.signed = any(
            node.op_type in GRID_READERS and integer(node, "zero_point") == SIGNED_ZERO
            for node, _ in value.uses()
        )
        matrix = bool(ops & MATRIX_READERS) and len(self.plain) == 2 and not self.grid
        self.dtype = self._dtype(platform.compute if matrix else "float32")

    def _dtype(self, floats: str) -> str:
        match self.value.dtype:
            case ir.DataType.UINT4:
                return "int4" if self.signed else "uint4"
            case ir.DataType.INT4:
                return "int4"
            case ir.DataType.INT8:
                return "int8"
            case ir.DataType.FLOAT16 if self.grid and self.platform.kernels == "xla":
                return "float16"
        return floats

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape in the file, four-bit codes counted one by one."""
        return self.plain[::-1] if self.turned else self.plain

    def described(self, axes: Axes) -> Weight:
        """Return the weight as the function takes it; axes are those of the program's shape."""
        whole: Axes = axes or (None,) * len(self.plain)
        return Weight(self.name, self.dtype, self.shape, whole[::-1] if self.turned else whole)

    def tensor(self) -> Tensor:
        """Return the weight as it is written."""
        shape = self.shape
        if self.dtype in {"int4", "uint4"}:
            if shape[-1] % 2:
                raise TargetRefused(
                    f"weight '{self.name}' has {shape[-1]} columns; four-bit weights lie two a byte",
                    hint="use --dtype int8",
                )
            packed = (*shape[:-1], shape[-1] // 2)
            return Tensor(self.name, "u8", packed, int(np.prod(packed)), self._packed)
        kind = FILE_DTYPES[self.dtype]
        size = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}[kind]
        return Tensor(self.name, kind, shape, size * int(np.prod(shape)), self._loader())

    def _loader(self) -> Callable[[], Array]:
        import ml_dtypes

        kinds: Mapping[str, Any] = {
            "float32": np.float32,
            "float16": np.float16,
            "int8": np.int8,
            "bfloat16": ml_dtypes.bfloat16,
        }

        def load() -> Array:
            values = array(self.value).astype(kinds[self.dtype])
            return np.ascontiguousarray(values.T if self.turned else values)

        return load

    def _packed(self) -> Array:
        """Return two codes a byte: column j in the low four bits, column j + width / 2 in the high ones."""
        values = quants(self.value).astype(np.int8) - np.int8(SIGNED_ZERO if self._shifted else 0)
        nibbles = (values.T if self.turned else values).astype(np.uint8) & np.uint8(15)
        half = nibbles.shape[1] // 2
        return np.ascontiguousarray(nibbles[:, :half] | nibbles[:, half:] << np.uint8(4))

    @property
    def _shifted(self) -> bool:
        return self.signed and self.value.dtype == ir.DataType.UINT4
