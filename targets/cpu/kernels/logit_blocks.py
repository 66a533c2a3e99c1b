"""What drawing a token needs to know of each block of 64 logits: the largest, and a sum of exponentials.

Shapes: logits f32[rows, x_stride], tokens i32[rows], scales f32[rows] -> maxima, sums f32[rows, vocab / 64].
`tokens` is where a row's largest logit is; its sums are of exp(scale * (logit - largest)). A row whose scale
is 0 is not drawn from and keeps what was there.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa

WIDTH = 64


@dataclass(frozen=True)
class LogitBlocks:
    """Look at the first `vocab` columns, a multiple of 64."""

    isa: Isa
    vocab: int
    x_stride: int

    def __post_init__(self) -> None:
        assert self.vocab % WIDTH == 0, "the last block must be whole"

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"logit_blocks_{self.vocab}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("logits", "tokens", "scales", "maxima", "sums")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.logit_blocks_body import build

        return build(self)
