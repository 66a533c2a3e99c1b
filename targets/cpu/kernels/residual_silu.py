"""The residual blocks of Medusa's heads behind their joint product: x + silu(y), for every head.

Shapes: x f32[rows, x_stride], y f32[rows, y_stride], head k in columns [k * width, (k + 1) * width)
        -> out f32[rows * heads, width], the heads of a row one after the other; int8 form as in quantize.py.
Source: Cai et al. 2024, arXiv:2401.10774, sec. 2.1.1.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import output_args, output_tag, require_groups


@dataclass(frozen=True)
class ResidualSilu:
    """All heads of a row; `keep_float` writes out, `quantize` its int8 form."""

    isa: Isa
    width: int
    heads: int
    x_stride: int
    y_stride: int
    quantize: bool
    keep_float: bool

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("hidden", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        outputs = output_tag(keep_float=self.keep_float, quantize=self.quantize)
        return f"residual_silu_{self.width}x{self.heads}_{self.x_stride}_{self.y_stride}_{outputs}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("x", "gates", *output_args(keep_float=self.keep_float, quantize=self.quantize))

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.residual_silu_body import residual_silu

        return residual_silu(self)
