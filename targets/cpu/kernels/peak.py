"""How fast the CPU multiplies: chains of multiply-adds in registers, and nothing else.

No kernel of the model. Artifacts carry them, so that a bench can measure the peak of the instructions that
the model's kernels are made of.

Shapes: state [threads, CHAINS, lanes], f32 or i32; `rows` counts repetitions, each over all chains.
"""

from dataclasses import dataclass
from typing import Any

from tokc.cost.launch_work import F32, INT8, LaunchWork
from tokc.targets.cpu.isa import Isa
from tokc.targets.plan import Launch

CHAINS = 12
UNROLLED = 4
BYTES_A_LANE = 4


@dataclass(frozen=True)
class Peak:
    """Multiply-adds of f32, or of int8 by the instructions that sum products of bytes."""

    isa: Isa
    arithmetic: str

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"peak_{self.arithmetic}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("state",)

    @property
    def launch(self) -> Launch:
        """Return the launch that states the FLOPs of a repetition on one thread."""
        products = CHAINS * UNROLLED * self.isa.lanes * (BYTES_A_LANE if self.arithmetic == INT8 else 1)
        work = LaunchWork(arithmetic=self.arithmetic, row_flops=2.0 * products)
        return Launch(self.symbol, (), "tokens", "Peak", None, work)

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.peak_body import build

        return build(self)


def peaks(isa: Isa) -> tuple[Peak, ...]:
    """Return the peaks that can be measured; the matrix unit's, which has other instructions, cannot."""
    return (Peak(isa, F32),) if isa.amx else (Peak(isa, F32), Peak(isa, INT8))
