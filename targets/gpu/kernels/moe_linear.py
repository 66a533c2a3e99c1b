"""Matrix products of the experts of a layer with the tokens that chose them, all in one launch.

Formula: y[slot] = x[slot or its token] @ w[expert of the slot].T, with weights as `linear` stores them, the
         experts' one below the other: expert e has rows [e * n, (e + 1) * n).
Shapes:  x f16[tokens (* k), x_stride], starts i32[experts + 1], order i32[tokens * k] (see `moe.py`)
         -> y f16 or f32[tokens * k, n].
Source:  a product a group of rows in one launch: Gale et al. 2022 (MegaBlocks), arXiv:2211.15841.

A program takes at most `tile_rows` slots of one expert and a tile of the weight's rows. An expert has at most
a slot a token, so that in a narrow step it is one tile and its weights are read once, and those of experts
that no token chose are not read. Rows are gathered and scattered by `order`; nothing is copied in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import NARROW_TOKENS
from tokc.targets.gpu.kernels.linear import SCALE_ALIGNMENT, WIDE_ROWS, Linear
from tokc.targets.gpu.kernels.moe import padded
from tokc.targets.gpu.tiles import Tile
from tokc.targets.plan import Axis, Grid

MOST_ELEMENTS = 1 << 31


@dataclass(frozen=True)
class MoeLinear:
    """The experts' products; `linear` is one expert's, and says grid, sizes, tile and dtype of y.

    `by_token` says that x has a row a token, not one a slot. `most_tokens` bounds a step.

    Arguments: weight, [scale, [offset]], x, starts, order, y.

    Raises: TargetRefused for a size that no kernel computes.
    """

    linear: Linear
    experts: int
    top_k: int
    by_token: bool
    most_tokens: int
    tensor_cores: bool = True

    def __post_init__(self) -> None:
        """Fill in the tile, and refuse what no kernel computes."""
        linear = self.linear
        if linear.n % SCALE_ALIGNMENT:
            raise TargetRefused(f"an expert of {linear.n} rows does not fill groups of {SCALE_ALIGNMENT}")
        slots = self.most_tokens * self.top_k
        assert slots * max(linear.n, linear.x_stride) < MOST_ELEMENTS, "32 bits address a step"
        assert not linear.bias, "experts have no bias"
        # Experts are programs enough: no range of columns has one of its own.
        object.__setattr__(self, "linear", replace(linear, tile=replace(linear.shape, splits=1)))

    @property
    def tile(self) -> Tile:
        """Return the tile of the weight."""
        return self.linear.shape

    @property
    def warps(self) -> int:
        """Return the tile's warps."""
        return self.tile.warps

    @property
    def stages(self) -> int:
        """Return the tile's stages."""
        return self.tile.stages

    @property
    def order(self) -> tuple[int, int, bool]:
        """Return what decides the bits of a result, as `Linear.order` does."""
        return self.linear.order

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        x = "t" if self.by_token else "s"
        return f"moe_{self.linear.symbol}_{self.top_k}of{self.experts}{x}_{self.most_tokens}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        parts = [(name, dtype) for name, dtype, _ in self.linear.parts]
        return (*parts, ("x", "f16"), ("starts", "i32"), ("order", "i32"), ("y", self.linear.y_dtype))

    @property
    def grid(self) -> Grid:
        """Return a program a tile; those of one tile of the weight follow each other."""
        rows = self.linear.tile_rows
        most = self.experts
        if self.most_tokens > rows:
            most += self.most_tokens * self.top_k // rows
        across = Axis(times=-(-self.linear.n // self.tile.block_n))
        return Axis("tokens", times=self.top_k, most=most), across

    @property
    def constants(self) -> Mapping[str, int | float | bool | str | None]:
        """Return the constexpr arguments."""
        given = {name for name, _ in self.args}
        linear = self.linear
        return {
            **{name: None for name in ("scale", "offset") if name not in given},
            "EXPERTS": self.experts,
            "TOP_K": self.top_k,
            "BY_TOKEN": self.by_token,
            "N": linear.n,
            "K": linear.k,
            "X_STRIDE": linear.x_stride,
            "BITS": linear.bits,
            "GROUP": linear.group,
            "F16": linear.y_dtype == "f16",
            "ROWS": linear.tile_rows,
            "BLOCK_N": self.tile.block_n,
            "BLOCK_K": self.tile.block_k,
            "BLOCK_E": max(32, padded(self.experts)),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.moe_linear import moe_linear

        return moe_linear

    def variant(self, *, wide: bool) -> "MoeLinear":
        """Return the same product for narrow or for wide steps, in the default tile."""
        rows = WIDE_ROWS if wide else NARROW_TOKENS
        most = self.most_tokens if wide else min(NARROW_TOKENS, self.most_tokens)
        return replace(self, linear=replace(self.linear, tile_rows=rows, tile=None), most_tokens=most)
