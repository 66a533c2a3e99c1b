"""The engine over the tiny model, for tests of load."""

from tests.runtime.conftest import make_engine

__all__ = ["make_engine"]
