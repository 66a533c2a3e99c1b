"""Picks the native tests that run kernels, so that a module of this folder runs the same under QEMU."""

import inspect
from collections.abc import Callable
from types import ModuleType

RUNS_KERNELS = {"load_kernels", "run"}


def kernel_tests(*modules: ModuleType) -> dict[str, Callable[..., None]]:
    """Return the tests that run kernels of the fixture `isa`, by name."""
    found: dict[str, Callable[..., None]] = {}
    for module in modules:
        tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
        asked = {name: set(inspect.signature(test).parameters) for name, test in tests.items()}
        adopted = {name for name, given in asked.items() if "isa" in given and given & RUNS_KERNELS}
        assert adopted, f"{module.__name__} has no test that runs kernels of an instruction set"
        assert not adopted & found.keys(), f"{module.__name__} names a test as another module does"
        found |= {name: tests[name] for name in adopted}
    return dict(sorted(found.items()))
