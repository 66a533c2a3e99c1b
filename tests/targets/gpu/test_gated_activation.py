"""The gated activation against its formula."""

import numpy as np
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.gated_activation import GATES, GatedActivation


def expected(gate: np.ndarray, activation: str) -> np.ndarray:
    gate = gate.astype(np.float64)
    if activation == "silu":
        return gate / (1 + np.exp(-gate))
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


@pytest.mark.parametrize("activation", GATES)
@pytest.mark.parametrize(("width", "stride"), [(96, 192), (600, 1216)])
def test_it_computes_the_gate_and_leaves_other_rows(activation: str, width: int, stride: int) -> None:
    random = np.random.default_rng(1)
    x = random.normal(0, 3, (4, stride)).astype(np.float16)
    y = np.full((4, width), 7, np.float16)
    kernel = GatedActivation(width, stride, activation)
    interpret(kernel, {"gate_up": x, "info": info(tokens=3), "y": y}, {"tokens": 4})
    wanted = expected(x[:3, :width], activation) * x[:3, width : 2 * width].astype(np.float64)
    np.testing.assert_allclose(y[:3], wanted, rtol=2e-3, atol=2e-3)
    assert (y[3] == 7).all()


def test_what_f16_cannot_hold_is_held_at_its_limit() -> None:
    x = np.full((1, 32), 60000, np.float16)
    y = np.zeros((1, 16), np.float16)
    interpret(GatedActivation(16, 32, "silu"), {"gate_up": x, "info": info(tokens=1), "y": y}, {"tokens": 1})
    assert (y == 65504).all()


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(TargetRefused, match="unknown activation 'relu'; choose from silu"):
        GatedActivation(16, 32, "relu")
