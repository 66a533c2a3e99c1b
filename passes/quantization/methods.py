"""Every quantization method by its name, and what a method is."""

from collections.abc import Mapping
from typing import Literal, Protocol

from tokc.passes.quantization.awq import ClippedRounding
from tokc.passes.quantization.calibrated import CalibratedMethod
from tokc.passes.quantization.gptq import Gptq
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


MethodName = Literal["rtn", "rtn-mse", "hqq", "gptq", "awq"]
METHODS: Mapping[str, Method] = {
    "rtn": RoundToNearest(),
    "rtn-mse": RoundToNearestMse(),
    "hqq": HalfQuadratic(),
}
CALIBRATED: Mapping[str, CalibratedMethod] = {"gptq": Gptq(), "awq": ClippedRounding()}


def without_calibration(name: str) -> Method:
    """Return the method, or what goes with one that is calibrated where there is nothing to calibrate on."""
    return METHODS.get(name, METHODS["rtn-mse"])
