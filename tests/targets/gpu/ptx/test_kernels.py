"""The compiled PTX of each kernel, executed, against the formula in f64."""

import numpy as np
import pytest

from tests.ptx.compile import Compiler
from tests.targets.gpu.interpreted import info
from tests.targets.gpu.ptx.emulated import emulate
from tests.targets.gpu.test_gated_activation import expected as gate_of
from tokc.targets.gpu.kernels.gated_activation import GATES, GatedActivation

ARCHITECTURES = ("sm_80", "sm_90")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("activation", GATES)
def test_gated_activation(compiled: Compiler, architecture: str, activation: str) -> None:
    random = np.random.default_rng(2)
    tokens, width, stride = 3, 600, 1216
    x = random.normal(0, 3, (tokens + 1, stride)).astype(np.float16)
    y = np.full((tokens + 1, width), 7, np.float16)
    kernel = GatedActivation(width, stride, activation)
    arrays = {"gate_up": x, "info": info(tokens=tokens), "y": y}
    counts = emulate(kernel, compiled(kernel, architecture), arrays, {"tokens": tokens + 1})
    wanted = gate_of(x[:tokens, :width], activation) * x[:tokens, width : 2 * width].astype(np.float64)
    np.testing.assert_allclose(y[:tokens], wanted, rtol=1e-3, atol=1e-4)
    assert (y[tokens] == 7).all()
    assert counts.moved_bytes <= 1.1 * tokens * width * 6
