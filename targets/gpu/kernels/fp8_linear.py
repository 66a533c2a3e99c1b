"""Matrix products of e4m3 weights and e4m3 activations, summed in f32; formula and shapes in `scaled_linear`.

`in_blocks`: a scale holds for a block of 128 rows and 128 columns of the weight, and for 128 columns of a row
of x: scale f32[n / 128, k / 128], x_scale f32[rows, k / 128], both rounded up.

The matrix unit sums at most 128 columns before they are added in f32, since it keeps fewer bits than f32
where it multiplies fp8. e4m3 is the device's own form: 'fn' (bias 7, up to 448) or, on gfx942, 'fnuz'
(bias 8, up to 240), in which the same bits mean half as much; `tokc.targets.gpu.packing` packs either.

Source: Micikevicius et al. 2022, arXiv:2209.05433 (e4m3); DeepSeek-AI 2024, arXiv:2412.19437, sec. 3.3
        (blocks, and sums promoted every 128 columns).
"""

from dataclasses import dataclass
from typing import ClassVar

from tokc.targets.gpu.kernels.scaled_linear import COLUMNS, ScaledLinear


@dataclass(frozen=True)
class Fp8Linear(ScaledLinear):
    """Weights and activations e4m3, a scale for each row, or for blocks."""

    family: ClassVar[str] = "fp8_linear"
    dtype: ClassVar[str] = "fp8"
    exact: ClassVar[bool] = False

    in_blocks: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        super().__post_init__()
        assert self.shape.block_k == COLUMNS, "the matrix unit sums 128 columns at a time"
        assert COLUMNS % self.shape.block_n == 0, f"{self.shape} lies in two blocks"

    @property
    def block_scales(self) -> bool:
        """Return whether a scale holds for a block of columns only."""
        return self.in_blocks

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Return the shape of the weight's scales."""
        return (-(-self.n // COLUMNS), self.x_scales) if self.in_blocks else (self.n,)

    @property
    def x_scales(self) -> int:
        """Return how many scales a row of x has."""
        return -(-self.k // COLUMNS) if self.in_blocks else 1
