"""The linear layers of many experts: each expert's rows by its own weight.

    y[p] = x[p] @ weight[e].T for the positions p in [starts[e], starts[e + 1])

Rows are sorted by expert (`moe.py`). The weight is the experts' packed weights one after the other. For each
expert that has rows the kernel does what the linear kernel of that shape does, with its tiles shared by the
threads; no thread waits between experts. A row's bits are those of that linear kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear


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
        from tokc.targets.cpu.kernels.moe_linear_body import build

        return build(self)
