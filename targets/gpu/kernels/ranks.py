"""What a rank makes of the parts of all ranks, once a collective has brought them here.

Formula: sum  y[row] = x[0, row] + x[1, row] + ..., in the order of ranks whatever the size of the step;
         join y[row] = x[0, row] | x[1, row] | ..., one beside the other.
Shapes:  x f32[ranks, padded, width] -> y f32[rows, width] (sum) or f32[rows, ranks * width] (join),
         where `padded` is the number of rows that the collective moved, at least those of the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid, Rows

BLOCK = 1024


@dataclass(frozen=True)
class RankSum:
    """A sum over ranks. Arguments: x, info, y."""

    ranks: int
    width: int
    rows: Rows = "tokens"
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"rank_sum_{self.ranks}_{self.width}_{self.rows}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("x", "f32"), ("info", "i32"), ("y", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a row and block of columns."""
        return Axis(self.rows), Axis(times=-(-self.width // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "RANKS": self.ranks,
            "WIDTH": self.width,
            "COUNT": INFO.index(self.rows),
            "PADDED": INFO.index(f"padded_{self.rows}"),
            "BLOCK": BLOCK,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.ranks import rank_sum

        return rank_sum


@dataclass(frozen=True)
class RankJoin(RankSum):
    """Columns that each rank has some of, put together. Arguments: x, info, y."""

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"rank_join_{self.ranks}_{self.width}_{self.rows}"

    @property
    def grid(self) -> Grid:
        """Return a program a row, block of columns and rank."""
        return (*super().grid, Axis(times=self.ranks))

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.ranks import rank_join

        return rank_join
