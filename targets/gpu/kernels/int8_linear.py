"""Matrix products of int8 weights and int8 activations, exact in i32; formula and shapes in `scaled_linear`.

Source: Xiao et al. 2023 (SmoothQuant), arXiv:2211.10438, per-channel and per-token scales.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokc.targets.gpu.kernels.scaled_linear import ScaledLinear


@dataclass(frozen=True)
class Int8Linear(ScaledLinear):
    """Weights and activations i8, a scale for each of the weight's rows and for each of x."""

    family: ClassVar[str] = "int8_linear"
    dtype: ClassVar[str] = "i8"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what no kernel computes, and sums that i32 could not hold."""
        super().__post_init__()
        assert self.k * 2**14 < 2**31, f"{self.k} products of 8 bits overflow 32"
