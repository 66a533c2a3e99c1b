"""Matrix products with weights in f16, or on a grid of 8 or 4 bits whose scale holds for a group of columns.

Formula: y = x @ w.T (+ bias), products of f16, sums in f32. w = weight (16 bits), code * scale (8 bits),
         (code - 8) * scale or code * scale + offset (4 bits), rounded to f16.
Shapes:  x f16[rows, x_stride], bias f32[n] -> y f16 or f32[rows, n], and for the weight
         16 bits: f16[n, k]
          8 bits: u8[n, k],      scale f16[k / group, n16]; codes are stored + 128
          4 bits: u8[n, k / 2],  scale and offset f16[k / group, n16]
         where n16 is n rounded up to a multiple of 16, so that rows of scales are aligned.
         Codes lie in pairs of bytes: a group has `parts` = 16 / bits parts of equal length, and its j-th pair
         holds the j-th code of each part, the first part's in the lowest bits. So of a word of 4 bytes,
         shifted by bits * i, the lowest bits of its halves are two neighbours in the i-th part.
Source:  dequantizing in registers: Frantar et al. 2024 (Marlin), arXiv:2408.11743; groups of columns that
         share a scale: Frantar et al. 2022 (GPTQ), arXiv:2210.17323.

What decides the bits of a result are the tile of columns, the number of ranges that the columns are summed in
and the matrix instruction, which the tile of rows of the weight chooses (`Linear.order`); how many rows of
x a program takes is free. So narrow and wide steps agree in every bit where these three do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO, NARROW_TOKENS
from tokc.targets.gpu.tiles import FEW, MANY, Tile, shipped
from tokc.targets.plan import Axis, Grid, Rows

BITS = (4, 8, 16)
OPTIONAL = ("scale", "offset", "bias", "partials", "counters")
GROUPS = (32, 64, 128)
WIDE_ROWS = 64
SCALE_ALIGNMENT = 16
# Hopper's matrix instruction for a whole warp group takes at least so many rows of the first operand.
WARP_GROUP_ROWS = 64
# At 4 bits a quarter of it is a product of its own, which must fill the matrix instruction's 16 columns.
LEAST_BLOCK_K = 64
# Programs that keep a large GPU busy, and the least columns that are worth a program of their own.
MULTIPROCESSORS = 128
LEAST_RANGE = 256


@dataclass(frozen=True)
class Linear:
    """One projection; `rows` names the entry of info that bounds it, `tile_rows` is how many a program takes.

    `tile` None takes the one that `tokc.targets.gpu.tiles` has for `architecture`, as the target spells it.

    Arguments: weight, [scale, [offset]], x, info, [bias], y, [partials, counters].

    `shared_out` gives each of the tile's ranges of columns a program of its own, for a step of at most
    `tile_rows` rows; they meet in `partials` f32[splits, tile_rows, n] and `counters` i32[tiles of n], which
    must be zero before the first launch and are zero after each. It changes no bit.

    Raises: TargetRefused for a grid or a size that no kernel computes.
    """

    n: int
    k: int
    bits: int
    symmetric: bool
    bias: bool
    x_stride: int
    y_dtype: str
    rows: Rows = "tokens"
    tile_rows: int = NARROW_TOKENS
    group: int = 32
    tile: Tile | None = None
    architecture: str = ""
    shared_out: bool = False
    tensor_cores: bool = True

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.bits not in BITS:
            raise TargetRefused(f"no kernel for weights of {self.bits} bits; choose from 4, 8, 16")
        if self.group not in GROUPS:
            raise TargetRefused(f"no kernel for groups of {self.group} columns; choose from 32, 64, 128")
        if self.bits == 8 and not self.symmetric:
            raise TargetRefused("no kernel for weights of 8 bits with an offset", hint="int8 is symmetric")
        if self.k % self.unit or self.x_stride % 8:
            raise TargetRefused(
                f"a weight of {self.k} columns (of {self.x_stride}) does not fill groups of {self.unit}",
                hint="pad the model's hidden and intermediate sizes",
            )
        assert self.y_dtype in {"f16", "f32"}, f"y is {self.y_dtype}"
        assert self.tile_rows >= NARROW_TOKENS, "the matrix unit takes 16 rows of x or more"
        assert self.shape.block_k % max(self.unit, LEAST_BLOCK_K) == 0, f"{self.shape} has too few columns"
        assert not self.shared_out or self.shape.splits > 1, "one range of columns is not shared out"

    @property
    def unit(self) -> int:
        """Return of how many columns k must be a multiple."""
        return 32 if self.bits == 16 else self.group

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
    def order(self) -> tuple[int, int, bool]:
        """Return what decides the bits of a result; kernels that agree here agree in their results."""
        return self.shape.block_k, self.shape.splits, self.shape.block_n >= WARP_GROUP_ROWS

    @property
    def parts(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Return name, dtype and shape of the arrays that make up the weight."""
        if self.bits == 16:
            return (("weight", "f16", (self.n, self.k)),)
        aligned = -(-self.n // SCALE_ALIGNMENT) * SCALE_ALIGNMENT
        per_group = ("f16", (self.k // self.group, aligned))
        codes = ("u8", (self.n, self.k * self.bits // 8))
        offset = () if self.symmetric else (("offset", *per_group),)
        return ("weight", *codes), ("scale", *per_group), *offset

    @property
    def scratch(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Return name, dtype and shape of what `shared_out` needs besides."""
        if not self.shared_out:
            return ()
        tiles = -(-self.n // self.shape.block_n)
        return ("partials", "f32", (self.shape.splits, self.tile_rows, self.n)), ("counters", "i32", (tiles,))

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        grid = "" if self.bits == 16 else ("s" if self.symmetric else "a") + f"{self.group}"
        tile = self.shape
        how = f"{self.tile_rows}x{tile.block_n}x{tile.block_k}_{tile.warps}_{tile.stages}_{tile.splits}"
        return (
            f"linear_{self.n}x{self.k}_w{self.bits}{grid}{'_bias' if self.bias else ''}_{self.x_stride}"
            f"_{self.y_dtype}_{self.rows}_{how}{'_shared' if self.shared_out else ''}"
        )

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return (
            *((name, dtype) for name, dtype, _ in self.parts),
            ("x", "f16"),
            ("info", "i32"),
            *((("bias", "f32"),) if self.bias else ()),
            ("y", self.y_dtype),
            *((name, dtype) for name, dtype, _ in self.scratch),
        )

    @property
    def grid(self) -> Grid:
        """Return a program a tile; those of one tile of the weight follow each other: it is read once."""
        across = Axis(times=-(-self.n // self.shape.block_n))
        if self.shared_out:
            return Axis(), across, Axis(times=self.shape.splits)
        return Axis(self.rows, self.tile_rows), across

    @property
    def constants(self) -> Mapping[str, int | float | bool | str | None]:
        """Return the constexpr arguments."""
        given = {name for name, _ in self.args}
        return {
            **{name: None for name in OPTIONAL if name not in given},
            "N": self.n,
            "K": self.k,
            "X_STRIDE": self.x_stride,
            "BITS": self.bits,
            "GROUP": self.group,
            "F16": self.y_dtype == "f16",
            "COUNT": INFO.index(self.rows),
            "ROWS": self.tile_rows,
            "BLOCK_N": self.shape.block_n,
            "BLOCK_K": self.shape.block_k,
            "SPLITS": self.shape.splits,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.linear import linear

        return linear

    def variant(
        self, *, wide: bool, bias: bool, x_stride: int, y_dtype: str, rows: Rows = "tokens"
    ) -> "Linear":
        """Return the kernel of the same weight for one place in the program, for narrow or for wide steps."""
        return replace(
            self,
            bias=bias,
            x_stride=x_stride,
            y_dtype=y_dtype,
            rows=rows,
            tile_rows=WIDE_ROWS if wide else NARROW_TOKENS,
            tile=None,
            shared_out=not wide and default_tile(self).splits > 1,
        )


def default_tile(kernel: Linear) -> Tile:
    """Return the tile of the table, or else of a rule; narrow and wide kernels of a weight agree in order.

    The rule: few output columns take short tiles, so that there are programs for more multiprocessors; many
    take tall ones, which read x less often. Narrow kernels keep more tiles in flight, for they only wait for
    memory. All fit the 64 KiB of shared memory of the smallest architecture.
    """
    narrow = kernel.tile_rows <= NARROW_TOKENS
    row = shipped(kernel.architecture, kernel.bits, kernel.n)
    if row is not None and kernel.k % row.narrow.block_k == 0 and row.narrow.block_k % kernel.unit == 0:
        splits = default_splits(kernel, row.narrow.block_n)
        return replace(row.narrow if narrow else row.wide, splits=splits)
    block_k = default_block_k(kernel)
    if kernel.n < MANY:
        block_n = WARP_GROUP_ROWS // 2 if kernel.n <= FEW else WARP_GROUP_ROWS
        return Tile(block_n, block_k, 4, 5 if narrow else 3, default_splits(kernel, block_n))
    return Tile(2 * WARP_GROUP_ROWS, block_k, 8, (3 if kernel.bits == 8 else 4) if narrow else 2)


def default_splits(kernel: Linear, block_n: int) -> int:
    """Return in how many ranges the columns are summed: more where there are few tiles of rows.

    A program of its own for each range lets a narrow step keep a large GPU's multiprocessors at work.
    """
    tiles, splits = -(-kernel.n // block_n), 1
    while tiles * splits < MULTIPROCESSORS and kernel.k >= 2 * splits * LEAST_RANGE:
        splits *= 2
    return splits


def default_block_k(kernel: Linear) -> int:
    """Return the widest tile of columns worth having that divides k; else one whose rest is masked."""
    widest = LEAST_BLOCK_K if kernel.bits == 16 else 2 * LEAST_BLOCK_K
    return widest if kernel.k % widest == 0 else max(LEAST_BLOCK_K, kernel.unit)
