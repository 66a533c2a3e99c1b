"""Measures two engines in turns, so that what the machine does meanwhile falls on both alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokc.cost.intervals import Ratio, paired_ratio
from tokc.cost.measure import WARM_UP_TOKENS, Load, Prompts, Run, require_fit, run_once
from tokc.cost.spread import Spread
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
    require_fit(load, min(one.context_length for one in engines))
    prompts = Prompts(min(one.executor.vocab_size for one in engines), load.prompt_tokens)
    for engine in engines:
        run_once(engine, prompts.take(1), WARM_UP_TOKENS)
    found: list[PairedFigure] = []
    for batch in batches:
        progress(f"batch {batch}: {load.repetitions} times, in turns")
        for engine in engines:  # the first step at a batch size is slower
            run_once(engine, prompts.take(batch), WARM_UP_TOKENS)
        rounds = []
        for turn in range(load.repetitions):
            asked, order = prompts.take(batch), (0, 1) if turn % 2 == 0 else (1, 0)
            runs = {side: run_once(engines[side], asked, load.output_tokens) for side in order}
            rounds.append((runs[0], runs[1]))
        found += _figures(batch, rounds)
    return tuple(found)


def _figures(batch: int, rounds: Sequence[tuple[Run, Run]]) -> list[PairedFigure]:
    figures = []
    for name, unit in FIGURES.items():
        field = name if unit == "tokens/s" else f"{name}_s"
        pairs = [(getattr(before, field), getattr(after, field)) for before, after in rounds]
        before, after = (Spread.of([pair[side] for pair in pairs]) for side in (0, 1))
        figures.append(PairedFigure(name, unit, batch, before, after, paired_ratio(pairs)))
    return figures
