"""The gated half of a feed-forward block: act(gate) * up.

Shapes: gate_up f16[tokens * slots, x_stride], gate in columns [0, width), up in the next as many
        -> y f16[tokens * slots, width].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.plan import Axis, Grid

GATES = ("silu", "gelu_tanh")
BLOCK = 512


@dataclass(frozen=True)
class GatedActivation:
    """One gate, of each of a token's `slots`; computed in f32, held within f16's range when it is rounded."""

    width: int
    x_stride: int
    activation: str
    slots: int = 1
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.activation not in GATES:
            raise TargetRefused(f"unknown activation '{self.activation}'; choose from {', '.join(GATES)}")

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        slots = f"_{self.slots}" if self.slots > 1 else ""
        return f"gated_{self.activation}_{self.width}_{self.x_stride}{slots}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("gate_up", "f16"), ("info", "i32"), ("y", "f16")

    @property
    def grid(self) -> Grid:
        """Return a program a slot and block of columns."""
        return Axis("tokens", times=self.slots), Axis(times=-(-self.width // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "WIDTH": self.width,
            "X_STRIDE": self.x_stride,
            "SLOTS": self.slots,
            "SILU": self.activation == "silu",
            "BLOCK": BLOCK,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.gated_activation import gated_activation

        return gated_activation
