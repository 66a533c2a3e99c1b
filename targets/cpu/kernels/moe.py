"""What stands around the experts of a mixture-of-experts layer: choosing, grouping, gathering, combining.

A step's slots, (token, j-th chosen expert), are sorted by expert, in a group by slot; so one product over the
rows of a group serves each expert (`moe_linear.py`). A position is a place in that order.

    MoeRoute    scores f32[rows, x_stride] -> experts i32[rows, k], weights f32[rows, k (+ 1)]
    MoeGroup    experts -> starts i32[2 * experts + 1], tokens i32[rows * k], places i32[rows * k]:
                the positions [starts[e], starts[e + 1]) are expert e's, `tokens` is a position's token,
                `places` a slot's position; the rest of `starts` is room to count in
    MoeGather   rows of tokens -> rows of positions
    MoeCombine  out[t] = sum over j of weights[t, j] * y[places[t * k + j]], in ascending j

Every value of a token depends on its own row alone, and sums have one order, so bits do not depend on the
batch, the chunk or the threads.
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.quantize import QUANTIZED_ARGS, require_groups


@dataclass(frozen=True)
class MoeRoute:
    """Choose `top_k` of `experts` by the largest scores, on a tie the lower index, and weigh them by softmax.

    Over the chosen if `normalize`, else over all. With `shared` the score after the last is a gate, whose
    sigmoid is one more weight.
    """

    isa: Isa
    experts: int
    top_k: int
    normalize: bool
    shared: bool
    x_stride: int

    @property
    def weights(self) -> int:
        """Return how many weights a row has."""
        return self.top_k + self.shared

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        over = "n" if self.normalize else "a"
        shared = "s" if self.shared else ""
        return f"moe_route_{self.top_k}of{self.experts}{over}{shared}_{self.x_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("scores", "experts", "weights")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.moe_bodies import route

        return route(self)


@dataclass(frozen=True)
class MoeGroup:
    """Sort slots by expert; the first thread does it, for a step has few."""

    isa: Isa
    experts: int
    top_k: int

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"moe_group_{self.top_k}of{self.experts}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("experts", "starts", "tokens", "places")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.moe_bodies import group

        return group(self)


@dataclass(frozen=True)
class MoeGather:
    """Copy each position's token: f32 rows `x_stride` apart, or their int8 form."""

    isa: Isa
    width: int
    top_k: int
    x_stride: int
    quantized: bool

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("activation", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        kind = "q" if self.quantized else f"f{self.x_stride}"
        return f"moe_gather_{self.width}x{self.top_k}_{kind}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        if not self.quantized:
            return ("tokens", "x", "y")
        return ("tokens", *(f"from_{name}" for name in QUANTIZED_ARGS), *QUANTIZED_ARGS)

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.moe_bodies import gather

        return gather(self)


@dataclass(frozen=True)
class MoeCombine:
    """Sum the weighted results of a token's experts, and of the shared one at last; rows `y_stride` apart."""

    isa: Isa
    width: int
    top_k: int
    y_stride: int
    shared_stride: int = 0

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into groups."""
        require_groups("expert", self.width)

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        shared = f"_s{self.shared_stride}" if self.shared_stride else ""
        return f"moe_combine_{self.width}x{self.top_k}_{self.y_stride}{shared}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("places", "weights", "y", *(("shared",) if self.shared_stride else ()), "out")

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.moe_bodies import combine

        return combine(self)
