"""What is computed an element at a time: sums, products and activations that no other kernel took in.

Shapes: a, b, x [rows, *_stride] of the dtypes given -> y [rows, width]; computed in f32, and held within
        f16's range where y is f16.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokc.errors import TargetRefused
from tokc.targets.gpu.kernel import INFO
from tokc.targets.plan import Axis, Grid, Rows

Float = Literal["f32", "f16"]
ACTIVATIONS = ("sigmoid", "gelu_tanh")
BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class _Elementwise:
    """One program a row and block of columns; `rows` says which entry of info counts the rows."""

    width: int
    y_dtype: Float = "f32"
    rows: Rows = "tokens"
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    @property
    def grid(self) -> Grid:
        """Return a program a row and block of columns."""
        return Axis(self.rows), Axis(times=-(-self.width // BLOCK))

    @property
    def _shared(self) -> dict[str, int | float | bool | str]:
        return {"WIDTH": self.width, "COUNT": INFO.index(self.rows), "BLOCK": BLOCK}


@dataclass(frozen=True, kw_only=True)
class _Pair(_Elementwise):
    """Two operands, a and b, of strides and dtypes of their own."""

    a_stride: int
    b_stride: int
    a_dtype: Float = "f32"
    b_dtype: Float = "f32"

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        kind = type(self).__name__.lower()
        dtypes = f"{self.a_dtype}_{self.b_dtype}_{self.y_dtype}"
        return f"{kind}_{self.width}_{self.a_stride}_{self.b_stride}_{dtypes}_{self.rows}"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("a", self.a_dtype), ("b", self.b_dtype), ("info", "i32"), ("y", self.y_dtype)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {
            **self._shared,
            "A_STRIDE": self.a_stride,
            "B_STRIDE": self.b_stride,
            "PRODUCT": isinstance(self, Multiply),
        }

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.elementwise import pair

        return pair


@dataclass(frozen=True, kw_only=True)
class Add(_Pair):
    """y = a + b. Arguments: a, b, info, y."""


@dataclass(frozen=True, kw_only=True)
class Multiply(_Pair):
    """y = a * b. Arguments: a, b, info, y."""


@dataclass(frozen=True, kw_only=True)
class _Single(_Elementwise):
    """One operand, x."""

    x_stride: int
    x_dtype: Float = "f32"

    @property
    def args(self) -> tuple[tuple[str, str], ...]:
        """Return the pointer arguments."""
        return ("x", self.x_dtype), ("info", "i32"), ("y", self.y_dtype)

    def _symbol(self, kind: str) -> str:
        return f"{kind}_{self.width}_{self.x_stride}_{self.x_dtype}_{self.y_dtype}_{self.rows}"


@dataclass(frozen=True, kw_only=True)
class Scale(_Single):
    """y = x * factor. Arguments: x, info, y."""

    factor: float

    def __post_init__(self) -> None:
        """Refuse a factor that is no number."""
        if not math.isfinite(self.factor):
            raise TargetRefused(f"cannot scale by {self.factor}; a finite number is wanted")

    @property
    def symbol(self) -> str:
        """Return the kernel's name, with the factor's bits."""
        return self._symbol(f"scale_{_spelled(self.factor)}")

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {**self._shared, "X_STRIDE": self.x_stride, "FACTOR": self.factor}

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.elementwise import scale

        return scale


@dataclass(frozen=True, kw_only=True)
class Apply(_Single):
    """y = activation(x). Arguments: x, info, y."""

    activation: str

    def __post_init__(self) -> None:
        """Refuse what no kernel computes."""
        if self.activation not in ACTIVATIONS:
            raise TargetRefused(
                f"unknown activation '{self.activation}'; choose from {', '.join(ACTIVATIONS)}"
            )

    @property
    def symbol(self) -> str:
        """Return the kernel's name."""
        return self._symbol(self.activation)

    @property
    def constants(self) -> Mapping[str, int | float | bool | str]:
        """Return the constexpr arguments."""
        return {**self._shared, "X_STRIDE": self.x_stride, "SIGMOID": self.activation == "sigmoid"}

    def function(self) -> Any:
        """Return the jitted function."""
        from tokc.targets.gpu.functions.elementwise import activate

        return activate


def _spelled(number: float) -> str:
    """Return a number as part of a C identifier; no two numbers share one."""
    return float(number).hex().replace("-", "m").replace("+", "").replace(".", "_")
