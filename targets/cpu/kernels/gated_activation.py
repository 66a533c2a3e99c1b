"""The gated half of a feed-forward block: act(gate) * up.

Shapes: gate_up f32[rows, x_stride], gate in columns [0, intermediate), up in the next as many
        -> y f32[rows, intermediate]; int8 form as in quantize.py.
"""

from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import output_args, output_tag, require_groups

GATES = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class GatedActivation:
    """One gate; `keep_float` writes y, `quantize` its int8 form; `times` rows for each of the launch's."""

    isa: Isa
    intermediate: int
    x_stride: int
    activation: str
    quantize: bool
    keep_float: bool
    times: int = 1

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        require_groups("intermediate", self.intermediate)
        if self.activation not in GATES:
            raise TargetRefused(f"unknown activation '{self.activation}'; choose from {', '.join(GATES)}")

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        outputs = output_tag(keep_float=self.keep_float, quantize=self.quantize)
        times = f"x{self.times}" if self.times > 1 else ""
        return f"gated_{self.activation}_{self.intermediate}{times}_{self.x_stride}_{outputs}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("gate_up", *output_args(keep_float=self.keep_float, quantize=self.quantize))

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.row_bodies import gated_activation

        return gated_activation(self)
