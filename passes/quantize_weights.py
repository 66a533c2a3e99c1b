"""Put the weights of linear layers and embeddings on a low-bit grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import onnx_ir as ir

from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import drop, initializer, made_by, parts_of
from tokc.passes.quantization.allocation import bits_by_weight, described
from tokc.passes.quantization.calibrated import Job, quantize_in_order
from tokc.passes.quantization.experts import calibratable, is_experts, joined, quant_moe_linear
from tokc.passes.quantization.grid import F32, NARROW, WIDE, WIDTHS, Grid, Quantized
from tokc.passes.quantization.methods import CALIBRATED, METHODS, Method, MethodName, without_calibration
from tokc.passes.quantization.narrow_scales import with_narrow_scales
from tokc.passes.quantization.pack import Packed, pack
from tokc.passes.quantization.stored import Stored, in_f32, source_of, stored_weight
from tokc.passes.quantization.weights import Once, is_head, replace_node, require_finite, weight_readers
from tokc.passes.smooth_activations import SmoothActivations
from tokc.quality.calibration import calibration

PLAIN = 32  # bits of a weight that is left alone
MAX_KL: Mapping[int, float] = {2: 16.0, 3: 4.0, 4: 1.0, WIDE: 0.1, PLAIN: 0.1}  # nats, by bits


@dataclass(frozen=True)
class QuantizeWeights:
    """Put linear weights on a grid of `bits`, and the embedding and the head on one of `head_bits`.

    Before: ``y = Linear(x, w, bias)``                     ``e = Gather(table, ids)``
    After:  ``y = QuantLinear(x, w.q, w.scale, , bias)``   ``e = QuantEmbedding(ids, table.q, table.scale)``

    A weight that was stored on a grid (a BlockDequantize in the program) keeps its codes bit by bit, whatever
    its width, and its scales in fp16; one on a grid that no kernel has (groups of 16, codes of 5 bits) goes
    to 8 bits. `requantize=true` puts those that have as many bits as asked or more, but are on another grid,
    on the one asked for. A table that is the embedding and the head at once is stored once. `head_bits=32`
    leaves a plain embedding and head alone.
    ``scale_bits=8`` rounds the scales of weights that are rounded anyway to counts of a unit of their row.
    `act_group` activation columns share a scale; 0 leaves the activations in f32.

    Methods `rtn`, `rtn-mse` and `hqq` look at a weight alone, when its codes are first read, so that no more
    than one is held in f32. `gptq` runs the program over a text (`tokc.quality.calibration`), part after
    part; so does `awq`, after `smooth-activations` was searched for weights of this grid. The embedding and
    the head, and what goes to 8 bits for want of a kernel, they leave to `rtn-mse`.
    ``bits=auto budget=4.25`` measures what 2, 3, 4 and 8 bits cost each layer on the text and spends so many
    bits a linear weight, scales counted, where they help most; it goes with every method.
    Saves about ``(32 - bits - scale_bits / group) / 8`` bytes a weight and decoded token.
    Lossy: weights are rounded, activations too unless ``act_group=0``; with it, kept grids are exact.
    """

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False

    bits: Literal[2, 3, 4, 8, "auto"] = 4
    group: int = 32
    method: MethodName = "rtn"
    symmetric: bool = True
    head_bits: Literal[2, 3, 4, 8, 32] = 8
    act_group: int = 32
    requantize: bool = False
    budget: float = 0.0
    scale_bits: Literal[8, 16] = 16

    def __post_init__(self) -> None:
        """Refuse options that make no grid."""
        self._grid(self.usual_bits)
        if (self.bits == "auto") != (self.budget > 0):
            raise ValueError("bits=auto and a budget in bits a weight, as in 'budget=4.25', go together")
        if self.act_group < 0:
            raise ValueError(f"act_group is 0 or a number of columns, not {self.act_group}")

    @property
    def max_kl(self) -> float:
        """Return the mean KL in nats that rounding may cost; more means that something else went wrong."""
        least = max((bits for bits in WIDTHS if bits <= self.budget), default=WIDTHS[0])
        return MAX_KL[min(least if self.bits == "auto" else self.bits, self.head_bits)]

    @property
    def usual_bits(self) -> int:
        """Return the bits of a linear weight that is not measured: with a budget the most within it."""
        if self.bits != "auto":
            return self.bits
        scales = self.scale_bits * (1 if self.symmetric else 2) / max(1, self.group)
        return max((bits for bits in WIDTHS if bits + scales <= self.budget), default=WIDTHS[0])

    def run(self, program: Program) -> Program:
        copy = self._smoothed(program).copy()
        readers = weight_readers(copy.graph, experts=True)
        heads = {value for value, nodes in readers.items() if is_head(nodes)}
        bits = dict.fromkeys(readers, self.usual_bits) | dict.fromkeys(heads, self.head_bits)
        chosen: dict[ir.Value, int] = {}
        ready: dict[ir.Value, _Weight] = {}
        if self._reads_text and not calibration().shapes_only:
            linears = calibratable({value: readers[value] for value in readers if value not in heads})
            chosen = self._chosen(copy, linears)
            bits |= chosen
            ready = self._calibrated(copy, linears, bits)
        quantized = False
        for value, nodes in readers.items():
            weight = ready.get(value) or self._weight(value, bits[value])
            if weight is None:
                continue
            for node in nodes:
                replace_node(node, self._node(node, weight))
            drop(copy.graph, value)
            for made in weight.values():
                if not made.is_initializer():
                    copy.graph.register_initializer(made)
            quantized = True
        if ready or chosen:
            copy = calibration().record(copy, bits=described(chosen.values()))
        return copy if quantized else program

    def without_text(self) -> "QuantizeWeights":
        """Return the pass as it is where there is no text to read, as for a draft, which reads features."""
        if not self._reads_text:
            return self
        method = self.method if self.method in METHODS else "rtn-mse"
        known: tuple[Literal[2, 3, 4, 8], ...] = (2, 3, 4, 8)
        bits = next(one for one in known if one == self.usual_bits)
        return replace(self, bits=bits, budget=0.0, method=method)

    def _smoothed(self, program: Program) -> Program:
        """Return the program with its channels scaled for the grid, where that is part of the method."""
        if self.method != "awq":
            return program
        smooth = SmoothActivations(
            bits=4 if self.bits == "auto" else self.bits,
            group=self.group,
            symmetric=self.symmetric,
            requantize=self.requantize,
        )
        return smooth.run(program)

    @property
    def _reads_text(self) -> bool:
        return self.bits == "auto" or self.method in CALIBRATED

    def _chosen(self, program: Program, readers: Mapping[ir.Value, list[ir.Node]]) -> dict[ir.Value, int]:
        """Return the bits of each weight that may go to any grid, where they are to be chosen."""
        if self.bits != "auto":
            return {}
        jobs = self._jobs(readers, dict.fromkeys(readers, WIDTHS[0]))
        return bits_by_weight(program, jobs, readers, self.budget)

    def _calibrated(
        self, program: Program, readers: Mapping[ir.Value, list[ir.Node]], bits: Mapping[ir.Value, int]
    ) -> dict[ir.Value, "_Weight"]:
        """Return the weights that a calibrated method quantizes now."""
        method = CALIBRATED.get(self.method)
        if method is None:
            return {}
        jobs = self._jobs(readers, bits)
        made = quantize_in_order(program, jobs, readers, method, repr(self))
        return {value: _weight_of(packed, jobs[value].grid) for value, packed in made.items()}

    def _jobs(
        self, readers: Mapping[ir.Value, list[ir.Node]], bits: Mapping[ir.Value, int]
    ) -> dict[ir.Value, Job]:
        """Return the weights that go to the grid of their bits."""
        jobs = {}
        for value in readers:
            source, grid = source_of(value), self._grid(bits[value])
            if source is not None and self._goes_to(source, bits[value]) == grid:
                jobs[value] = Job(partial(in_f32, source), grid)
        return jobs

    def _grid(self, bits: int) -> Grid:
        symmetric = self.symmetric or bits == WIDE
        return Grid(bits, self.group, symmetric, self.scale_bits if symmetric else 16)

    def _goes_to(self, source: "Stored | ir.TensorProtocol", bits: int) -> Grid | None:
        """Return the grid that a weight goes to, or None where it stays as it is or is only narrowed."""
        if isinstance(source, Stored):
            kept = source.grid(self.group)
            if not self.requantize or bits == PLAIN:
                return None if kept is not None else self._grid(WIDE)
            stays = kept is not None and (kept.bits < bits or kept == self._grid(bits))
            return None if stays else self._grid(bits)
        return None if bits == PLAIN else self._grid(bits)

    def _weight(self, value: ir.Value, bits: int) -> "_Weight | None":
        """Return the weight on its grid, made when it is read, or None where it stays as it is."""
        stored = stored_weight(value)
        source = stored or value.const_value
        if source is None:
            return None
        grid = self._goes_to(source, bits)
        if grid is not None:
            method = without_calibration(self.method)
            return _weight_of(_Deferred(str(value.name), source, method, grid).tensors(), grid)
        kept = None if stored is None else stored.grid(self.group)
        return None if stored is None or kept is None else _kept(value, stored, kept)

    def _node(self, node: ir.Node, weight: "_Weight") -> ir.Node:
        """Return the quantized counterpart of `node`."""
        attributes = {"zero_point": weight.grid.zero_point, "block_size": weight.grid.group}
        if weight.grid.bits < NARROW:
            attributes["bits"] = weight.grid.bits
        if weight.grid.scale_bits < 16:
            attributes["scale_bits"] = weight.grid.scale_bits
        operands = [weight.codes, weight.scale, weight.offset]
        if node.op_type == "Gather":
            return make_node("QuantEmbedding", [node.inputs[1], *operands], attributes)
        attributes["act_group"] = self.act_group
        if is_experts(node):
            return quant_moe_linear(node, operands, attributes)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return make_node("QuantLinear", [node.inputs[0], *operands, bias], attributes)


@dataclass(frozen=True)
class _Weight:
    """Hold the values of a weight that lies on a grid."""

    codes: ir.Value
    scale: ir.Value
    offset: ir.Value | None
    grid: Grid

    def values(self) -> tuple[ir.Value, ...]:
        """Return the values that exist."""
        return tuple(one for one in (self.codes, self.scale, self.offset) if one is not None)


def _weight_of(packed: Packed, grid: Grid) -> _Weight:
    offset = None if packed.offset is None else _made(packed.offset)
    return _Weight(_made(packed.codes), _made(packed.scale), offset, grid)


class _Deferred:
    """Quantize one weight when it is first read, and keep only what was made of it."""

    def __init__(self, name: str, source: Stored | ir.TensorProtocol, method: Method, grid: Grid) -> None:
        self.name, self.grid = name, grid
        shape = (source.tensors.codes if isinstance(source, Stored) else source).shape.numpy()
        self.rows, self.columns = shape
        self._result = Once(partial(_quantized, name, source, method, grid))

    def tensors(self) -> Packed:
        """Return tensors whose data is made on demand."""
        rows, groups = self.rows, self.grid.groups(self.columns)
        codes = ir.DataType.UINT4 if self.grid.bits <= NARROW else ir.DataType.INT8
        half = ir.DataType.FLOAT16
        return Packed(
            self._lazy("q", codes, [rows, self.columns], lambda: self._result().codes),
            self._lazy("scale", half, [rows, groups], lambda: self._result().scale),
            None if self.grid.symmetric else self._lazy("offset", half, [rows, groups], self._offset),
        )

    def _lazy(
        self, part: str, dtype: ir.DataType, shape: list[int], make: Callable[[], ir.TensorProtocol]
    ) -> ir.LazyTensor:
        return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=f"{self.name}.{part}")

    def _offset(self) -> ir.TensorProtocol:
        offset = self._result().offset
        assert offset is not None, "an asymmetric grid has an offset"
        return offset


def _quantized(name: str, source: Stored | ir.TensorProtocol, method: Method, grid: Grid) -> Packed:
    parts = (source,) if isinstance(source, Stored) else parts_of(source)
    with require_finite(name):
        return pack(name, joined([_rounded(in_f32(part), method, grid) for part in parts]))


def _rounded(w: F32, method: Method, grid: Grid) -> Quantized:
    return with_narrow_scales(w, grid, method.quantize(w, grid))


def _kept(value: ir.Value, stored: Stored, grid: Grid) -> _Weight:
    """Return a stored weight as it is, or with its scales in fp16."""
    narrowed = stored.narrowed(str(value.name))
    if narrowed is not None:
        return _weight_of(narrowed, grid)
    node = made_by(value, "BlockDequantize", "tokc")
    assert node is not None, "a stored weight is made by a node"
    codes, scale, *rest = node.inputs
    assert codes is not None, "BlockDequantize lacks its codes"
    assert scale is not None, "BlockDequantize lacks its scale"
    return _Weight(codes, scale, rest[0] if rest else None, grid)


def _made(tensor: ir.TensorProtocol) -> ir.Value:
    return initializer(tensor, str(tensor.name))
