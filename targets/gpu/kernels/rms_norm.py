"""RMS normalization of the residual stream, with the residual add that comes before it where there is one.

Formula: sum = x + residual;  y = sum / sqrt(mean(sum^2) + epsilon) * weight, in f32.
Shapes:  x, residual, sum f32[rows, x_stride], weight f32[width]
         -> y_float f32[rows, width], y f16[rows, width].
Source:  Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid, Rows

MAX_WIDTH = 32768
COLUMNS_A_WARP = 512
MAX_WARPS = 16


@dataclass(frozen=True)
class RmsNorm:
    """One program a row; the sum's order depends on the width alone.

    Arguments: x, [residual, sum], weight, info, [y_float], [y]. `half` asks for y f16, held within f16's
    range, which a matrix product reads; `keep_float` asks for y_float. `rows` says which entry of info
    counts.

    Raises: TargetRefused for a row that one program cannot hold.
    """

    width: int
    x_stride: int
    epsilon: float
    add: bool
    keep_float: bool = False
    half: bool = True
    rows: Rows = "tokens"
    stages: int = 1
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.width > MAX_WIDTH:
            raise TargetRefused(f"a norm of {self.width} columns is wider than {MAX_WIDTH}")
        assert self.half or self.keep_float, "a norm that writes nothing"

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        forms = ("f" if self.keep_float else "") + ("h" if self.half else "")
        epsilon = float(self.epsilon).hex().replace("-", "m").replace("+", "").replace(".", "_")
        name = "add_rms_norm" if self.add else "rms_norm"
        return f"{name}_{self.width}_{self.x_stride}_{epsilon}_{forms}_{self.rows}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return (
            ("x", "f32"),
            *((("residual", "f32"), ("total", "f32")) if self.add else ()),
            ("weight", "f32"),
            ("info", "i32"),
            *((("y_float", "f32"),) if self.keep_float else ()),
            *((("y", "f16"),) if self.half else ()),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a row."""
        return (Axis(self.rows),)

    @property
    def block(self) -> int:
        """Return the power of two that holds a row."""
        return max(32, 1 << (self.width - 1).bit_length())

    @property
    def warps(self) -> int:
        """Return the number of warps; more than a few columns a lane hide the latency of a load better."""
        return max(1, min(MAX_WARPS, self.block // COLUMNS_A_WARP))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            # A pointer that the form does not take is a constant, and no code reads it.
            **({} if self.add else {"residual": 0, "total": 0}),
            **({} if self.keep_float else {"y_float": 0}),
            **({} if self.half else {"y": 0}),
            "WIDTH": self.width,
            "X_STRIDE": self.x_stride,
            "EPSILON": self.epsilon,
            "COUNT": INFO.index(self.rows),
            "ADD": self.add,
            "KEEP_FLOAT": self.keep_float,
            "HALF": self.half,
            "BLOCK": self.block,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.rms_norm import rms_norm

        return rms_norm
