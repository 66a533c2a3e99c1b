"""Scale channels of activations, and the weights that read them inversely."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from tokc.ir.inference import annotate_shapes
from tokc.ir.program import Program
from tokc.ir.rewrite import drop, initializer
from tokc.passes.quantization.grid import F32, WIDE, Grid
from tokc.passes.quantization.stored import Stored, in_f32, source_of
from tokc.passes.quantization.weights import weight_readers
from tokc.passes.smoothing.search import BothRounded, WeightsRounded
from tokc.passes.smoothing.sites import Site, by_reader, free_linears, sites
from tokc.quality.calibration import calibration, layers


@dataclass(frozen=True)
class SmoothActivations:
    """Choose a scale s for each channel that a norm, gate or v makes, so that what reads it rounds better.

    Before: ``n = RMSNorm(x, g); y = Linear(n, w)``
    After:  ``n = RMSNorm(x, g / s); y = Linear(n, w * s)``
    and likewise with the rows of up before down, and of v before o, for g.

    `search=weights` looks for the s that suits weights of `bits` in groups of `group` (AWQ), `search=both`
    for the one that suits them together with int8 activations in groups of `act_group` (SmoothQuant); both
    take s of one where no other errs less on the calibration text. A weight that was stored on a grid keeps
    it, and what it has part in stays as it is, unless ``requantize=true``.
    Saves nothing by itself: it goes before quantize-weights.
    Exact up to one rounding of each weight in f32.
    """

    name: ClassVar[str] = "smooth-activations"
    exact: ClassVar[bool] = True

    search: Literal["weights", "both"] = "weights"
    bits: Literal[2, 3, 4, 8] = 4
    group: int = 32
    symmetric: bool = True
    act_group: int = 32
    requantize: bool = False

    def __post_init__(self) -> None:
        """Refuse options that make no grid."""
        if self.act_group < 0:
            raise ValueError(f"act_group is 0 or a number of columns, not {self.act_group}")
        self._search()

    def run(self, program: Program) -> Program:
        on = calibration()
        if on.shapes_only:
            return program
        copy = program.copy()
        annotate_shapes(copy.graph)
        readers = weight_readers(copy.graph)
        kept = [] if self.requantize else [value for value in readers if self._keeps(value)]
        site_of = by_reader(sites(copy, set(free_linears(readers, kept))))
        search, scales = self._search(), _Scales()
        for layer in layers(copy, list(site_of), _read, on):
            statistics = layer.collect()
            for site in dict.fromkeys(site_of[node] for node in layer.linears):
                read = site.readers[0].inputs[0]
                assert read is not None, "a Linear has an input"
                weights = [layer.weight(node) for node in site.readers]
                scale = search.best(site, weights, statistics[read])
                if scale is not None:
                    scales.add(site, scale)
        if not scales.changed:
            return program
        scales.apply(copy.graph)
        return on.record(copy)

    def _search(self) -> WeightsRounded | BothRounded:
        grid = Grid(bits=self.bits, group=self.group, symmetric=self.symmetric or self.bits == WIDE)
        return WeightsRounded(grid) if self.search == "weights" else BothRounded(grid, self.act_group)

    def _keeps(self, value: ir.Value) -> bool:
        """Return whether quantize-weights will keep a weight's grid."""
        source = source_of(value)
        return isinstance(source, Stored) and source.grid(self.group) is not None


@dataclass
class _Scales:
    """What becomes of each constant: it is multiplied by columns and divided by rows."""

    columns: dict[ir.Value, F32] = field(default_factory=dict)
    rows: dict[ir.Value, F32] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Return whether any scale was chosen."""
        return bool(self.columns)

    def add(self, site: Site, scale: F32) -> None:
        """Take in the scale of one site."""
        for node in site.readers:
            weight = node.inputs[1]
            assert weight is not None, "a Linear has a weight"
            self.columns[weight] = scale
        written = site.written(scale)
        if site.norm is not None:
            self.rows[site.norm] = self.rows.get(site.norm, np.float32(1)) * written
        if site.writer is None:
            return
        for value in site.writer.inputs[1:]:
            if value is not None:
                assert value.shape is not None, f"'{value.name}' has no shape"
                rows = np.ones(int(value.shape.numpy()[0]), np.float32)
                rows[site.start : site.start + len(written)] = written
                self.rows[value] = self.rows.get(value, np.float32(1)) * rows

    def apply(self, graph: ir.Graph) -> None:
        """Let every node read the scaled constants, which are made when they are read."""
        for value in dict.fromkeys((*self.columns, *self.rows)):
            new = _scaled(value, self.columns, self.rows)
            value.replace_all_uses_with(new)
            drop(graph, value)
            new.name = str(value.name)
            graph.register_initializer(new)


def _scaled(value: ir.Value, columns: Mapping[ir.Value, F32], rows: Mapping[ir.Value, F32]) -> ir.Value:
    by_column, by_row, source = columns.get(value), rows.get(value), source_of(value)
    assert source is not None, f"'{value.name}' is no constant"
    assert value.shape is not None, f"'{value.name}' has no shape"

    def load() -> ir.TensorProtocol:
        w = in_f32(source).copy()
        if by_column is not None:
            w *= by_column
        if by_row is not None:
            w /= by_row if w.ndim == 1 else by_row[:, None]
        return ir.Tensor(w)

    shape = ir.Shape([int(dim) for dim in value.shape.numpy()])
    return initializer(ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=shape), str(value.name))


def _read(value: ir.Value) -> F32:
    source = source_of(value)
    assert source is not None, f"'{value.name}' is no constant"
    return in_f32(source)
