"""The choice of a token from its logits.

Shapes: logits f32[rows, x_stride] -> tokens i32[rows].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid

BLOCK = 4096


@dataclass(frozen=True)
class ArgMax:
    """One program a row of logits; of equal logits the first. Arguments: logits, info, tokens.

    A logit of NaN is never chosen; a row of nothing else yields 0.
    """

    vocab: int
    x_stride: int
    warps: int = 8
    stages: int = 3
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"arg_max_{self.vocab}_{self.x_stride}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("logits", "f32"), ("info", "i32"), ("tokens", "i32")

    @property
    def grid(self) -> Grid:
        """Return a program a row."""
        return (Axis("rows"),)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "VOCAB": self.vocab,
            "X_STRIDE": self.x_stride,
            "COUNT": INFO.index("rows"),
            "BLOCK": BLOCK,
            "STAGES": self.stages,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.sampling import arg_max

        return arg_max
