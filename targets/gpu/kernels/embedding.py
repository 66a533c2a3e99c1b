"""Rows of the token embedding table.

Formula: out = table[input_ids], in f32; a table on a grid is dequantized in f32.
Shapes:  table f16[vocab, hidden], or the arrays of a `Linear` of n = vocab, k = hidden, so that a tied head
         and the embedding read one copy; input_ids i32[tokens] -> out f32[tokens, hidden].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.targets.gpu.kernels.linear import Linear
from tokc.targets.plan import Axis, Grid

BLOCK = 1024


@dataclass(frozen=True)
class Embedding:
    """A table in f16; that of a tied head in f16 is the same array.

    Arguments: table, input_ids, info, out.
    """

    hidden: int
    vocab: int
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"embedding_{self.vocab}x{self.hidden}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("table", "f16"), ("input_ids", "i32"), ("info", "i32"), ("out", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a token and block of columns."""
        return Axis("tokens"), Axis(times=-(-self.hidden // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {"HIDDEN": self.hidden, "BLOCK": BLOCK}

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.embedding import embedding

        return embedding


@dataclass(frozen=True)
class QuantEmbedding:
    """A table in the layout of `linear`, whose weight has 4 or 8 bits.

    Arguments: weight, scale, [offset], input_ids, info, out.
    """

    linear: Linear
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Check the table's form."""
        assert self.linear.bits in {4, 8}, "a table in f16 is an Embedding"

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        of = self.linear
        grid = f"{of.bits}{'s' if of.symmetric else 'a'}{of.group}"
        return f"quant_embedding_{of.n}x{of.k}_w{grid}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        parts = tuple((name, dtype) for name, dtype, _ in self.linear.parts)
        return *parts, ("input_ids", "i32"), ("info", "i32"), ("out", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a token and block of columns."""
        return Axis("tokens"), Axis(times=-(-self.linear.k // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        of = self.linear
        (_, _, (_, scale_stride)) = of.parts[1]
        return {
            "HIDDEN": of.k,
            "BITS": of.bits,
            "GROUP": of.group,
            "SCALE_STRIDE": scale_stride,
            "BLOCK": BLOCK,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions import embedding

        return embedding.quant_embedding if self.linear.symmetric else embedding.quant_embedding_offset
