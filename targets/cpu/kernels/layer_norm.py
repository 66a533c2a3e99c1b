"""Layer norm of each row, with the quantization after it if it is asked for.

    y = (x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon) * weight + bias

The variance is that of the centred row, in a second walk over it, so that a large mean costs no digits.

Shapes: x f32[rows, x_stride]; weight, bias f32[width] -> y f32[rows, width]; int8 form as in quantize.py.
Source: Ba et al. 2016, arXiv:1607.06450.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import output_args, output_tag, require_groups
from tokc.targets.cpu.kernels.rms_norm import float_tag


@dataclass(frozen=True)
class LayerNorm:
    """One norm; `keep_float` writes y, `quantize` its int8 form."""

    isa: Isa
    width: int
    x_stride: int
    epsilon: float
    bias: bool
    quantize: bool
    keep_float: bool

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("norm", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        outputs = output_tag(keep_float=self.keep_float, quantize=self.quantize)
        bias = "_bias" if self.bias else ""
        return f"layer_norm_{self.width}_{self.x_stride}_{float_tag(self.epsilon)}{bias}_{outputs}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        inputs = ("x", "weight", "bias") if self.bias else ("x", "weight")
        return (*inputs, *output_args(keep_float=self.keep_float, quantize=self.quantize))

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.layer_norm_body import build

        return build(self)
