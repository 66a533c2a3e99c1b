"""Element by element, and rows as they are: what is left where no fusion took an op in.

Shapes: inputs f32[rows, stride] with a stride of their own, results f32[rows, width].
"""

from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import require_groups
from tokc.targets.cpu.kernels.rms_norm import float_tag

FUNCTIONS = ("silu", "gelu_tanh", "gelu", "sigmoid", "tanh", "copy")


@dataclass(frozen=True)
class Add:
    """out = a + b."""

    isa: Isa
    width: int
    a_stride: int
    b_stride: int

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("sum", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"add_{self.width}_{self.a_stride}_{self.b_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("a", "b", "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import binary

        return binary(self, product=False)


@dataclass(frozen=True)
class Multiply:
    """out = a * b."""

    isa: Isa
    width: int
    a_stride: int
    b_stride: int

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("product", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"multiply_{self.width}_{self.a_stride}_{self.b_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("a", "b", "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import binary

        return binary(self, product=True)


@dataclass(frozen=True)
class Scale:
    """out = x * factor."""

    isa: Isa
    width: int
    x_stride: int
    factor: float

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("product", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"scale_{self.width}_{self.x_stride}_{float_tag(self.factor)}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("x", "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import scale

        return scale(self)


@dataclass(frozen=True)
class Apply:
    """out = function(x); 'copy' makes a view's rows dense."""

    isa: Isa
    width: int
    x_stride: int
    function: str

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        require_groups("activation", self.width)
        if self.function not in FUNCTIONS:
            raise TargetRefused(f"unknown function '{self.function}'; choose from {', '.join(FUNCTIONS)}")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"apply_{self.function}_{self.width}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("x", "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import apply

        return apply(self)


@dataclass(frozen=True)
class GatherRows:
    """out[i] = x[indices[i]], indices i32[rows]."""

    isa: Isa
    width: int
    x_stride: int

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("row", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"gather_rows_{self.width}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("x", "indices", "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import gather_rows

        return gather_rows(self)
