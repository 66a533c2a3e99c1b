"""What stands around the experts of a mixture-of-experts layer: choosing, grouping and combining.

A slot is a token's j-th chosen expert, number token * k + j; what has an axis of slots lies in that order.
`order` sorts the slots by expert, an expert's in ascending order, so that one product over neighbours in it
serves an expert (`moe_linear.py`).

    MoeScores   x f32[tokens, x_stride], weight f32[experts, width] -> scores f32[tokens, experts]
    MoeRoute    scores -> experts i32[tokens, k], weights f32[tokens, k (+ 1)]
    MoeGroup    experts -> starts i32[experts + 1], order i32[tokens * k]: expert e's slots are
                order[starts[e] : starts[e + 1]]
    MoeCombine  out[t] = sum over j of weights[t, j] * y[t, j] (+ weights[t, k] * shared[t]), ascending in j

Scores are products of f32 that no matrix unit rounds, for a score that moves may change a token's experts.
Every value of a token depends on its own row alone, in an order that no step changes.
Source: Shazeer et al. 2017, arXiv:1701.06538.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import NARROW_TOKENS
from tokc.targets.plan import Axis, Grid

MOST_EXPERTS = 1024
COLUMNS = 16  # experts that a program scores
BLOCK_K = 64
BLOCK_SLOTS = 512
BLOCK = 512


def padded(count: int) -> int:
    """Return the power of two from `count` on."""
    return 1 << (count - 1).bit_length()


@dataclass(frozen=True)
class MoeScores:
    """The router's linear layer; `experts` are the rows of its weight. Arguments: x, weight, info, scores.

    Raises: TargetRefused for more experts than a program can choose from.
    """

    experts: int
    width: int
    x_stride: int
    warps: int = 4
    stages: int = 3
    tensor_cores: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.experts > MOST_EXPERTS:
            raise TargetRefused(f"a layer of {self.experts} experts is wider than {MOST_EXPERTS}")

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"moe_scores_{self.experts}x{self.width}_{self.x_stride}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("x", "f32"), ("weight", "f32"), ("info", "i32"), ("scores", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a tile of tokens and of experts."""
        return Axis("tokens", NARROW_TOKENS), Axis(times=-(-self.experts // COLUMNS))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "WIDTH": self.width,
            "X_STRIDE": self.x_stride,
            "EXPERTS": self.experts,
            "ROWS": NARROW_TOKENS,
            "COLUMNS": COLUMNS,
            "BLOCK_K": BLOCK_K,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.moe import moe_scores

        return moe_scores


@dataclass(frozen=True)
class MoeRoute:
    """Choose the `top_k` largest scores, on a tie the lower index, and weigh them by softmax.

    Over the chosen if `normalize`, else over all `experts`. With `shared` the score after the last is a gate,
    whose sigmoid is one more weight. NaN is chosen last. Arguments: scores, info, experts, weights.
    """

    experts: int
    top_k: int
    normalize: bool
    shared: bool
    warps: int = 1
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        over = "n" if self.normalize else "a"
        return f"moe_route_{self.top_k}of{self.experts}{over}{'s' if self.shared else ''}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("scores", "f32"), ("info", "i32"), ("experts", "i32"), ("weights", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a token."""
        return (Axis("tokens"),)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            "EXPERTS": self.experts,
            "TOP_K": self.top_k,
            "NORMALIZE": self.normalize,
            "SHARED": int(self.shared),
            "BLOCK": max(32, padded(self.experts)),
            "SLOTS": padded(self.top_k),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.moe import moe_route

        return moe_route


@dataclass(frozen=True)
class MoeGroup:
    """Sort slots by expert, a program an expert. Arguments: experts, info, starts, order."""

    experts: int
    top_k: int
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return f"moe_group_{self.top_k}of{self.experts}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("experts", "i32"), ("info", "i32"), ("starts", "i32"), ("order", "i32")

    @property
    def grid(self) -> Grid:
        """Return a program an expert."""
        return (Axis(times=self.experts),)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {"EXPERTS": self.experts, "TOP_K": self.top_k, "BLOCK": BLOCK_SLOTS}

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.moe import moe_group

        return moe_group


@dataclass(frozen=True)
class MoeCombine:
    """Sum a token's weighted slots y f32[tokens, k, width]; `shared_stride` 0 stands for no shared expert.

    Arguments: y, weights, [shared], info, out.
    """

    width: int
    top_k: int
    shared_stride: int = 0
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        shared = f"_s{self.shared_stride}" if self.shared_stride else ""
        return f"moe_combine_{self.width}x{self.top_k}{shared}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        shared = (("shared", "f32"),) if self.shared_stride else ()
        return ("y", "f32"), ("weights", "f32"), *shared, ("info", "i32"), ("out", "f32")

    @property
    def grid(self) -> Grid:
        """Return a program a token and block of columns."""
        return Axis("tokens"), Axis(times=-(-self.width // BLOCK))

    @property
    def constants(self) -> Mapping[str, int | float | bool | str | None]:
        """Return the constexpr arguments."""
        return {
            **({} if self.shared_stride else {"shared": None}),
            "WIDTH": self.width,
            "TOP_K": self.top_k,
            "SHARED_STRIDE": self.shared_stride,
            "BLOCK": BLOCK,
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.moe import moe_combine

        return moe_combine
