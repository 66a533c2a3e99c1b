"""The likeliest token of each row of logits; of equal logits the first.

Shapes: logits f32[rows, x_stride] -> tokens i32[rows]. A logit of NaN is never chosen; a row of nothing else
yields 0.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa

VECTORS = 4  # that are compared side by side


@dataclass(frozen=True)
class ArgMax:
    """Find the largest of the first `vocab` columns."""

    isa: Isa
    vocab: int
    x_stride: int

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"arg_max_{self.vocab}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("logits", "tokens")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.arg_max_body import build

        return build(self)
