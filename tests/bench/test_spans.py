"""The timed spans drive every program through the same steps, within the context that they announce."""

import numpy as np
import pytest

from bench.spans import Kind, Span, Tokens, measure


class Recorder:
    """Holds what its sequences would hold, and refuses a step that does not continue it."""

    vocab = 1000

    def __init__(self) -> None:
        self.held = 0
        self.most = 0
        self.calls: list[tuple[str, int]] = []

    def start(self, prompts: Tokens) -> Tokens:
        self.held = 0
        self._advance("start", 0, prompts.shape[1])
        return prompts[:, -1]

    def step(self, tokens: Tokens, position: int) -> Tokens:
        self._advance("step", position, 1)
        return tokens

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        self._advance("verify", position, len(tokens))
        return tokens

    def _advance(self, call: str, position: int, count: int) -> None:
        assert position == self.held, f"{call} at {position} of a cache that holds {self.held}"
        self.held += count
        self.most = max(self.most, self.held)
        self.calls.append((call, count))


@pytest.mark.parametrize(
    ("kind", "tokens", "wanted"),
    [
        ("prefill", 64, [("start", 16)] * 3),
        ("decode", 5, [("start", 16), *[("step", 1)] * 11]),
        ("verify", 4, [("start", 16), *([("step", 1)] * 8 + [("verify", 4)] * 8) * 3]),
    ],
)
def test_a_span_is_these_steps_in_a_cache_without_gaps(
    kind: Kind, tokens: int, wanted: list[tuple[str, int]]
) -> None:
    side = Recorder()
    span = Span(kind, prompt=16, tokens=tokens, repeats=2)
    value, repeats = measure(side, span)
    assert side.calls == wanted
    assert side.most <= span.context
    assert len(repeats) == 2
    assert 0 < value < np.inf
