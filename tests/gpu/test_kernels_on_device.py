"""The kernels' own tests, of each against its formula in f64, with every launch on the device."""

from collections.abc import Callable
from inspect import isfunction

import pytest

from tests.gpu.on_device import KernelsOnDevice
from tests.targets.gpu import (
    test_elementwise,
    test_embedding,
    test_gated_activation,
    test_gather_rows,
    test_linear,
    test_moe,
    test_moe_linear,
    test_paged_attention,
    test_rms_norm,
    test_rope_write_kv,
)

pytestmark = pytest.mark.gpu
MODULES = (
    test_elementwise,
    test_embedding,
    test_gated_activation,
    test_gather_rows,
    test_linear,
    test_moe,
    test_moe_linear,
    test_paged_attention,
    test_rms_norm,
    test_rope_write_kv,
)


@pytest.fixture(autouse=True)
def _on_the_device(kernels: KernelsOnDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "interpret", kernels.launch)


def own_tests() -> dict[str, Callable[..., None]]:
    """Return the tests of the modules under names of their own, parameters included."""
    return {
        f"{name}_in_{module.__name__.rpartition('.')[2].removeprefix('test_')}": function
        for module in MODULES
        for name, function in vars(module).items()
        if name.startswith("test_") and isfunction(function)
    }


globals().update(own_tests())
