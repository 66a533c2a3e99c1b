"""Every quantization method by its name, and what a method is."""

from collections.abc import Mapping
from typing import Literal, Protocol

from tokc.passes.quantization.grid import F32, Grid, Quantized
from tokc.passes.quantization.hqq import HalfQuadratic
from tokc.passes.quantization.rtn import RoundToNearest
from tokc.passes.quantization.rtn_mse import RoundToNearestMse


class Method(Protocol):
    """Quantize one weight by nothing but the weight; every data-free method is a class like this."""

    def quantize(self, w: F32, grid: Grid) -> Quantized:
        """Return the codes and scales of `w`, f32 [out, in].

        Raises: NotFinite if `w` holds an infinity or a NaN.
        """


MethodName = Literal["rtn", "rtn-mse", "hqq"]
METHODS: Mapping[str, Method] = {
    "rtn": RoundToNearest(),
    "rtn-mse": RoundToNearestMse(),
    "hqq": HalfQuadratic(),
}
