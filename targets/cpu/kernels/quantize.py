"""Dynamic quantization of activations to int8, in groups of 32 columns of a row.

s = absmax / 127; xq = round_half_even(x * (1 / s)), 0 where s is 0; xsum = sum(xq).

Shapes: x f32[rows, x_stride] -> xq i8[rows, width], xs f32[rows, width / 32], xsum i32[rows, width / 32].
"""

from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa

GROUP = 32
QUANTIZED_ARGS = ("xq", "xs", "xsum")


@dataclass(frozen=True)
class Quantize:
    """x f32 to int8 with one scale a group."""

    isa: Isa
    width: int
    x_stride: int

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("activation", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"quantize_{self.width}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("x", *QUANTIZED_ARGS)

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import quantize

        return quantize(self)


def require_groups(what: str, width: int) -> None:
    """Refuse a width that is not whole groups of 32.

    Raises: TargetRefused naming the width.
    """
    if width % GROUP:
        raise TargetRefused(
            f"{what} width {width} is not a multiple of {GROUP}",
            hint=f"the CPU kernels run widths that divide by {GROUP}",
        )


def output_args(*, keep_float: bool, quantize: bool) -> tuple[str, ...]:
    """Return the output pointers of a kernel that writes f32, int8 or both."""
    return (*(("y",) if keep_float else ()), *(QUANTIZED_ARGS if quantize else ()))


def output_tag(*, keep_float: bool, quantize: bool) -> str:
    """Return how a symbol says which outputs there are."""
    return ("f" if keep_float else "") + ("q" if quantize else "")
