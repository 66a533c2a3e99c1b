"""Fixtures of the server's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.server.background import Served, serving
from tokc.runtime.server.service import Service
from tokc.runtime.server.settings import Settings

Serve = Callable[..., Served]


@pytest.fixture
def served(make_engine: MakeEngine) -> Iterator[Served]:
    """Serve the tiny model."""
    with serving(Service(make_engine())) as running:
        yield running


@pytest.fixture
def serve(make_engine: MakeEngine) -> Iterator[Serve]:
    """Return a function that serves the tiny model with limits."""
    with ExitStack() as stack:

        def start(settings: Settings | None = None, **sizes: int) -> Served:
            return stack.enter_context(serving(Service(make_engine(**sizes), settings)))

        yield start
