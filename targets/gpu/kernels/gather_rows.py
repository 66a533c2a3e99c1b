"""The rows of the last hidden state whose logits are wanted.

Shapes: x [tokens, x_stride], logit_rows i32[rows] -> out [rows, width], both of `dtype`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.plan import Axis, Grid

BLOCK = 1024


@dataclass(frozen=True)
class GatherRows:
    """One gather of f16 or f32 rows.

    Arguments: x, logit_rows, info, out.
    """

    width: int
    x_stride: int
    dtype: str = "f16"
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Check the dtype."""
        assert self.dtype in {"f16", "f32"}, f"rows of {self.dtype}"

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"gather_rows_{self.width}_{self.x_stride}_{self.dtype}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("x", self.dtype), ("logit_rows", "i32"), ("info", "i32"), ("out", self.dtype)

    @property
    def grid(self) -> Grid:
        """Return a program a row and block of columns."""
        return Axis("rows"), Axis(times=-(-self.width // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {"WIDTH": self.width, "X_STRIDE": self.x_stride, "BLOCK": BLOCK}

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.gather_rows import gather_rows

        return gather_rows
