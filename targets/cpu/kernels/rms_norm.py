"""RMS norm of each row, with the residual add before it and the quantization after it if they are asked for.

    sum = x + residual            (add)
    y = sum / sqrt(mean(sum ** 2) + epsilon) * weight

Shapes: x, residual, sum f32[rows, x_stride]; weight f32[width] -> y f32[rows, width];
        int8 form as in quantize.py.
"""

import struct
from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import output_args, output_tag, require_groups


@dataclass(frozen=True)
class RmsNorm:
    """One norm; `keep_float` writes y, `quantize` its int8 form."""

    isa: Isa
    width: int
    x_stride: int
    epsilon: float
    add: bool
    quantize: bool
    keep_float: bool

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("norm", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        name = "add_rms_norm" if self.add else "rms_norm"
        outputs = output_tag(keep_float=self.keep_float, quantize=self.quantize)
        return f"{name}_{self.width}_{self.x_stride}_{float_tag(self.epsilon)}_{outputs}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        inputs = ("x", "residual", "sum", "weight") if self.add else ("x", "weight")
        return (*inputs, *output_args(keep_float=self.keep_float, quantize=self.quantize))

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import rms_norm

        return rms_norm(self)


def float_tag(value: float) -> str:
    """Return a number's f32 bits, for a symbol."""
    return struct.pack(">f", value).hex()
