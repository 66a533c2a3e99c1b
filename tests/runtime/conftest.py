"""Fixtures of the runtime's tests: an engine over the tiny model."""

from collections.abc import Callable, Iterator

import pytest

from tests.runtime.hash_model import CHATML, EOS, HashModel, byte_tokenizer
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.speculation.speculation import Speculation

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Return a function that makes engines, closed after the test."""
    engines: list[Engine] = []

    def make(
        *,
        token_budget: int | None = None,
        prefix_cache: bool = True,
        speculation: Speculation | None = None,
        **sizes: int,
    ) -> Engine:
        executor = HashModel(**sizes)
        engine = Engine(
            executor,
            byte_tokenizer(),
            name="hash",
            eos_ids=[EOS],
            chat_template=ChatTemplate(CHATML, {}),
            core=Core(
                executor, token_budget=token_budget, prefix_cache=prefix_cache, speculation=speculation
            ),
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()
