"""Fixtures of the server's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.hash_model import CHATML, EOS, HashModel, byte_tokenizer
from tests.runtime.server.background import Served, serving
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.engine import Engine
from tokc.runtime.server.service import Service
from tokc.runtime.server.settings import Settings

Serve = Callable[..., Served]


@contextmanager
def serving_hash(**sizes: int) -> Iterator[Served]:
    """Serve a tiny model of these sizes."""
    with (
        Engine(
            HashModel(**sizes),
            byte_tokenizer(),
            name="hash",
            eos_ids=[EOS],
            chat_template=ChatTemplate(CHATML, {}),
        ) as engine,
        serving(Service(engine)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Serve the tiny model to all tests of a file."""
    with serving_hash() as running:
        yield running


@pytest.fixture(scope="module")
def roomy() -> Iterator[Served]:
    """Serve a tiny model whose context holds a few thousand bytes."""
    with serving_hash(context_length=4096, num_pages=4096, max_tokens=64) as running:
        yield running


@pytest.fixture
def serve(make_engine: MakeEngine) -> Iterator[Serve]:
    """Return a function that serves the tiny model with limits."""
    with ExitStack() as stack:

        def start(settings: Settings | None = None, **sizes: int) -> Served:
            return stack.enter_context(serving(Service(make_engine(**sizes), settings)))

        yield start
