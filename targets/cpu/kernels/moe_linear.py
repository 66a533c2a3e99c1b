"""The linear layers of many experts: each expert's rows by its own weight.

    y[p] = x[p] @ weight[e].T for the positions p in [starts[e], starts[e + 1])

Rows are sorted by expert (`moe.py`). The weight is the experts' packed weights one after the other. For each
expert that has rows the kernel does what the linear kernel of that shape does, with its tiles shared by the
threads; no thread waits between experts. A row's bits are those of that linear kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear

if TYPE_CHECKING:
    from tokc.targets.cpu.kernels.tir import Arguments, Buffer, Expr

UNIT_BYTES = 8  # that offsets into the weight are counted in, so that 16 GiB can be reached


@dataclass(frozen=True)
class MoeLinear:
    """`experts` linear layers without bias, all of the shape and grid of `linear`."""

    linear: QuantLinear | Linear
    experts: int

    def __post_init__(self) -> None:
        """Check what the caller promises."""
        assert not self.linear.bias, "experts have no bias"
        assert self.expert_bytes % 64 == 0, "an expert's weight is whole cache lines"

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"moe_{self.experts}_{self.linear.symbol}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        weight, *rest = self.linear.args
        return (weight, "starts", *rest)

    @property
    def expert_bytes(self) -> int:
        """Return the size of one expert's packed weight."""
        return self.linear.tiles * self.linear.tile_bytes

    @property
    def row_steps(self) -> Mapping[str, tuple[int, str]]:
        """Return by how many elements of which type an operand moves on from row to row."""
        one = self.linear
        if isinstance(one, Linear):
            return {"x": (one.x_stride, "float32"), "y": (one.y_stride, "float32")}
        per_group = {"xs": (one.groups, "float32"), "xsum": (one.groups, "int32")}
        return {"xq": (one.k // 4, "int32"), **per_group, "y": (one.y_stride, "float32")}

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tvm.tirx.script.builder import ir as T

        from tokc.targets.cpu.kernels.tir import function
        from tokc.targets.cpu.kernels.vector_math import keep

        def body(arguments: "Arguments") -> None:
            starts = arguments.buffer("starts", "int32")
            with T.serial(0, self.experts) as expert:
                first = keep(starts[expert])
                count = keep(starts[expert + 1] - first)
                with T.If(count > 0), T.Then():
                    places = {name: (first * step, dtype) for name, (step, dtype) in self.row_steps.items()}
                    places["w"] = expert * (self.expert_bytes // UNIT_BYTES), "float64"
                    self._emit(Group(arguments, count, places))

        return function(self.symbol, self.args, body)

    def _emit(self, arguments: "Group") -> None:
        from tokc.targets.cpu.kernels.quant_linear_tile import Body

        if isinstance(self.linear, Linear):
            self.linear.emit(arguments)
        else:
            Body(self.linear, arguments).emit()


class Group:
    """The parameters of a linear kernel for the rows of one expert: `Arguments` with pointers moved on."""

    def __init__(
        self, arguments: "Arguments", rows: "Expr", places: Mapping[str, tuple["Expr", str]]
    ) -> None:
        """Take `rows` rows; `places` are offsets in elements of a type."""
        self._arguments, self._places = arguments, places
        self.rows, self.tid, self.threads = rows, arguments.tid, arguments.threads
        self.share = arguments.share

    def buffer(self, name: str, dtype: str) -> "Buffer":
        """Return a flat view of a pointer that was moved on."""
        from tvm.tirx.script.builder import ir as T

        from tokc.targets.cpu.kernels.tir import ANY_SIZE

        place, unit = self._places[name]
        moved = T.Bind(T.address_of(self._arguments.buffer(name, unit)[place]))
        return T.decl_buffer((ANY_SIZE,), dtype, data=moved)
