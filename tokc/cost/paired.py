"""Measures two engines in turns, so that what the machine does meanwhile falls on both alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from tokc.cost.intervals import Ratio, paired_ratio
from tokc.cost.measure import WARM_UP_TOKENS, Load
from tokc.cost.spread import Spread
from tokc.errors import TokcError
from tokc.runtime.engine import Engine

FIGURES = {"ttft": "s", "tpot": "s", "tokens_per_s": "tokens/s"}


@dataclass(frozen=True)
class PairedFigure:
    """A figure of two engines at one batch size; `ratio` is second over first, of the paired rounds."""

    name: str
    unit: str
    batch: int
    before: Spread
    after: Spread
    ratio: Ratio


def measure_paired(
    engines: tuple[Engine, Engine],
    batches: Sequence[int],
    load: Load,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[PairedFigure, ...]:
    """Measure each batch size `load.repetitions` times in both engines, in turns; the first one alternates.

    Both are sent the same random prompts, which neither has seen before.
    Raises: TokcError if a prompt and its answer do not fit the context of both.
    """
    assert load.repetitions >= 3, "an interval needs repetitions"
    longest, context = load.prompt_tokens + load.output_tokens, min(one.context_length for one in engines)
    if longest > context:
        raise TokcError(
            f"{load.prompt_tokens} prompt and {load.output_tokens} answer tokens exceed "
            f"the context of {context}",
            hint="lower --prompt-tokens or --output-tokens",
        )
    random = np.random.default_rng(0)
    vocab = min(one.executor.vocab_size for one in engines)

    def prompts(count: int) -> list[list[int]]:
        return [random.integers(vocab, size=load.prompt_tokens).tolist() for _ in range(count)]

    for engine in engines:
        engine.generate_all(prompts(1), max_tokens=WARM_UP_TOKENS, ignore_eos=True)
    found: list[PairedFigure] = []
    for batch in batches:
        progress(f"batch {batch}: {load.repetitions} times, in turns")
        for engine in engines:  # the first step at a batch size is slower
            _run(engine, prompts(batch), WARM_UP_TOKENS)
        rounds = []
        for turn in range(load.repetitions):
            asked, runs = prompts(batch), [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                runs[side] = _run(engines[side], asked, load.output_tokens)
            rounds.append((runs[0], runs[1]))
        found += _figures(batch, rounds)
    return tuple(found)


def _run(engine: Engine, prompts: list[list[int]], output_tokens: int) -> tuple[float, float, float]:
    """Return mean time to the first token, mean time per later token, and output tokens a second."""
    start_s = time.perf_counter()
    results = engine.generate_all(prompts, max_tokens=output_tokens, ignore_eos=True)
    wall_s = time.perf_counter() - start_s
    return (
        fmean(result.timing.ttft_s for result in results),
        fmean(result.timing.tpot_s or 0.0 for result in results),
        sum(result.usage.completion_tokens for result in results) / wall_s,
    )


def _figures(
    batch: int, rounds: Sequence[tuple[tuple[float, float, float], tuple[float, float, float]]]
) -> list[PairedFigure]:
    figures = []
    for place, (name, unit) in enumerate(FIGURES.items()):
        pairs = [(before[place], after[place]) for before, after in rounds]
        before, after = (Spread.of([pair[side] for pair in pairs]) for side in (0, 1))
        figures.append(PairedFigure(name, unit, batch, before, after, paired_ratio(pairs)))
    return figures
