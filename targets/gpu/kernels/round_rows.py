"""Activations rounded to e4m3, one scale a row, for `fp8_linear`.

Formula: s = max |x| / 448, or 1 for a row of zeros; y = e4m3(x / s), ties to even; y_scale = s.
Shapes:  x f16[rows, x_stride] -> y u8[rows, width], the codes, y_scale f32[rows].

Codes are those of the form 'fn'. Where the device's form is 'fnuz' they mean half as much; y_scale is 2 s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid, Rows


@dataclass(frozen=True)
class RoundRows:
    """One rounding; `rows` names the entry of info that bounds it.

    Arguments: x, info, y, y_scale.
    """

    width: int
    x_stride: int
    fnuz: bool = False
    rows: Rows = "tokens"
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"round_rows_{self.width}_{self.x_stride}_{self.rows}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("x", "f16"), ("info", "i32"), ("y", "u8"), ("y_scale", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a row."""
        return (Axis(self.rows),)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "WIDTH": self.width,
            "X_STRIDE": self.x_stride,
            "UNIT": 2.0 if self.fnuz else 1.0,
            "COUNT": INFO.index(self.rows),
            "BLOCK": 1 << (self.width - 1).bit_length(),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.round_rows import round_rows

        return round_rows
