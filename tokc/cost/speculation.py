"""Measures what drafts do to the rate at each batch size: with and without them in turns, on text.

Drafts of random tokens would say nothing, so that prompts are passages of the evaluation text that comes
along, which nothing was trained on.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tokc.cost.drafted import Drafted
from tokc.cost.measure import Load, require_fit, run_once
from tokc.cost.spread import Spread
from tokc.errors import TokcError
from tokc.runtime.counters import DraftCounts
from tokc.runtime.engine import Engine

WARM_UP_TOKENS = 16


class Passages:
    """Passages of a text, each seen once while there are such."""

    def __init__(self, token_ids: Sequence[int], tokens: int) -> None:
        """Cut a text into passages of so many tokens.

        Raises: TokcError if it has not one.
        """
        count = len(token_ids) // tokens
        if not count:
            raise TokcError(f"the text has {len(token_ids)} tokens, a prompt {tokens}")
        self._passages = np.array(token_ids[: count * tokens]).reshape(count, tokens).tolist()
        self._next = 0

    def take(self, count: int) -> list[list[int]]:
        """Return the next passages."""
        first, self._next = self._next, self._next + count
        return [self._passages[at % len(self._passages)] for at in range(first, self._next)]


def measure(
    engine: Engine,
    text: str,
    batches: Sequence[int],
    load: Load,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Drafted, ...]:
    """Measure each batch size on passages of `text`; the engine drafts.

    Raises: TokcError if a prompt and its answer do not fit the context.
    """
    require_fit(load, engine.context_length)
    passages = Passages(engine.tokenizer.encode(text), load.prompt_tokens)
    engine.generate_all(passages.take(1), max_tokens=WARM_UP_TOKENS, ignore_eos=True)
    found = []
    for batch in batches:
        progress(f"batch {batch}: with and without drafts, {load.repetitions} times")
        found.append(_at(engine, batch, load, passages))
    return tuple(found)


def _at(engine: Engine, batch: int, load: Load, passages: Passages) -> Drafted:
    speculation = engine.speculation
    assert speculation is not None, "only an engine that drafts is measured"
    before, pairs = _totals(engine.counters.drafts), []
    for _ in range(load.repetitions):
        prompts, rates = passages.take(batch), []
        for paused in (True, False):
            speculation.paused = paused
            run = run_once(engine, prompts, load.output_tokens, cache_salt=b"paused" if paused else b"")
            rates.append(run.tokens_per_s)
        pairs.append(rates)
    after = _totals(engine.counters.drafts)
    return Drafted(
        batch=batch,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        tokens_per_s=Spread.of([drafted for _, drafted in pairs]),
        plain_tokens_per_s=Spread.of([plain for plain, _ in pairs]),
        speedup=Spread.of([drafted / plain for plain, drafted in pairs]),
        drafts=after[0] - before[0],
        verified_at=_grown(before[1], after[1]),
        accepted_at=_grown(before[2], after[2]),
    )


def _totals(counts: DraftCounts) -> tuple[int, list[int], list[int]]:
    return counts.drafts, counts.verified_at[:], counts.accepted_at[:]


def _grown(before: list[int], after: list[int]) -> tuple[int, ...]:
    return tuple(now - (before[at] if at < len(before) else 0) for at, now in enumerate(after))
