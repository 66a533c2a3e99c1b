"""The body of the linear layers of many experts: the linear kernel's, for one expert's rows at a time."""

from collections.abc import Mapping
from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear_tile import Body
from tokc.targets.cpu.kernels.tir import ANY_SIZE, Arguments, Buffer, Expr, function
from tokc.targets.cpu.kernels.vector_math import keep

UNIT_BYTES = 8  # that offsets into the weight are counted in, so that 16 GiB can be reached
Places = Mapping[str, tuple[Expr, str]]


class Group(Arguments):
    """The parameters of a linear kernel for the rows of one expert: another's, with pointers moved on."""

    def __init__(self, arguments: Arguments, rows: Expr, places: Places) -> None:
        """Take `rows` rows; `places` are offsets in elements of a type."""
        self._whole, self._places = arguments, places
        self.rows, self.tid, self.threads = rows, arguments.tid, arguments.threads

    def buffer(self, name: str, dtype: str) -> Buffer:
        """Return a flat view of a pointer that was moved on."""
        place, unit = self._places[name]
        moved = T.Bind(T.address_of(self._whole.buffer(name, unit)[place]))
        return T.decl_buffer((ANY_SIZE,), dtype, data=moved)


def build(spec: MoeLinear) -> Any:
    """Return the PrimFunc."""

    def body(arguments: Arguments) -> None:
        starts = arguments.buffer("starts", "int32")
        with T.serial(0, spec.experts) as expert:
            first = keep(starts[expert])
            count = keep(starts[expert + 1] - first)
            with T.If(count > 0), T.Then():
                places = {name: (first * step, dtype) for name, (step, dtype) in spec.row_steps.items()}
                places["w"] = expert * (spec.expert_bytes // UNIT_BYTES), "float64"
                group = Group(arguments, count, places)
                if isinstance(spec.linear, Linear):
                    spec.linear.emit(group)
                else:
                    Body(spec.linear, group).emit()

    return function(spec.symbol, spec.args, body)
