"""What products of 8-bit weights and 8-bit activations have in common, `fp8_linear` and `int8_linear`.

Formula: y[r, j] = (sum over k of x[r, k] * weight[j, k]) * scale[j] * x_scale[r] (+ bias[j]).
Shapes:  weight [n, k], scale f32[n], x [rows, x_stride], x_scale f32[rows], bias f32[n]
         -> y f16 or f32[rows, n].
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO, NARROW_TOKENS
from tokc.targets.gpu.kernels.linear import WARP_GROUP_ROWS, WIDE_ROWS
from tokc.targets.gpu.tiles import MANY, Tile
from tokc.targets.plan import Axis, Grid, Rows

COLUMNS = 128
COLUMN_ALIGNMENT = 16


@dataclass(frozen=True)
class ScaledLinear:
    """One projection; `rows` names the entry of info that bounds it, `tile_rows` is how many a program takes.

    Arguments: weight, scale, x, x_scale, info, [bias], y.

    Raises: TargetRefused for a size that no kernel computes.
    """

    family: ClassVar[str]
    dtype: ClassVar[str]
    exact: ClassVar[bool]

    n: int
    k: int
    bias: bool
    x_stride: int
    y_dtype: str
    rows: Rows = "tokens"
    tile_rows: int = NARROW_TOKENS
    tile: Tile | None = None
    tensor_cores: bool = True

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.k % COLUMN_ALIGNMENT or self.x_stride % COLUMN_ALIGNMENT:
            raise TargetRefused(
                f"{self.k} columns (of {self.x_stride}) are not a multiple of {COLUMN_ALIGNMENT}",
                hint="pad the model's hidden and intermediate sizes",
            )
        assert self.y_dtype in {"f16", "f32"}, f"y is {self.y_dtype}"
        assert self.tile_rows >= NARROW_TOKENS, "the matrix unit takes 16 rows of x or more"
        assert self.shape.splits == 1, "columns are summed in one range"

    @property
    def shape(self) -> Tile:
        """Return the tile."""
        return self.tile or default_tile(self)

    @property
    def warps(self) -> int:
        """Return the tile's warps."""
        return self.shape.warps

    @property
    def stages(self) -> int:
        """Return the tile's stages."""
        return self.shape.stages

    @property
    def order(self) -> tuple[int, bool]:
        """Return what decides the bits of a result; kernels that agree here agree in their results."""
        return self.shape.block_k, self.shape.block_n >= WARP_GROUP_ROWS

    @property
    def block_scales(self) -> bool:
        """Return whether a scale holds for a block of columns only."""
        return False

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Return the shape of the weight's scales."""
        return (self.n,)

    @property
    def x_scales(self) -> int:
        """Return how many scales a row of x has."""
        return 1

    @property
    def parts(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Return name, dtype and shape of the arrays that make up the weight."""
        return ("weight", self.dtype, (self.n, self.k)), ("scale", "f32", self.scale_shape)

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        tile = self.shape
        how = f"{self.tile_rows}x{tile.block_n}x{tile.block_k}_{tile.warps}_{tile.stages}"
        return (
            f"{self.family}_{self.n}x{self.k}{'_blocks' if self.block_scales else ''}"
            f"{'_bias' if self.bias else ''}_{self.x_stride}_{self.y_dtype}_{self.rows}_{how}"
        )

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return (
            *((name, dtype) for name, dtype, _ in self.parts),
            ("x", self.dtype),
            ("x_scale", "f32"),
            ("info", "i32"),
            *((("bias", "f32"),) if self.bias else ()),
            ("y", self.y_dtype),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a tile; those of one tile of the weight follow each other: it is read once."""
        return Axis(self.rows, self.tile_rows), Axis(times=-(-self.n // self.shape.block_n))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str | None]:
        """Return the constexpr arguments."""
        return {
            **({} if self.bias else {"bias": None}),
            "N": self.n,
            "K": self.k,
            "X_STRIDE": self.x_stride,
            "BLOCK_SCALES": self.block_scales,
            "EXACT": self.exact,
            "F16": self.y_dtype == "f16",
            "COUNT": INFO.index(self.rows),
            "ROWS": self.tile_rows,
            "BLOCK_N": self.shape.block_n,
            "BLOCK_K": self.shape.block_k,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.scaled_linear import scaled_linear

        return scaled_linear

    def variant(self, *, wide: bool, bias: bool, x_stride: int, y_dtype: str, rows: Rows = "tokens") -> Self:
        """Return the kernel of the same weight for one place in the program, for narrow or for wide steps."""
        tile_rows = WIDE_ROWS if wide else NARROW_TOKENS
        return replace(
            self, bias=bias, x_stride=x_stride, y_dtype=y_dtype, rows=rows, tile_rows=tile_rows, tile=None
        )


def default_tile(kernel: ScaledLinear) -> Tile:
    """Return the tile to use where nothing was searched; narrow and wide kernels agree in order.

    All are tall enough for Hopper's warp groups, whose instruction alone multiplies 8 bits at full rate.
    """
    narrow = kernel.tile_rows <= NARROW_TOKENS
    if kernel.n < MANY:
        return Tile(WARP_GROUP_ROWS, COLUMNS, 4, 5 if narrow else 3)
    return Tile(2 * WARP_GROUP_ROWS, COLUMNS, 8, 3 if narrow else 2)
