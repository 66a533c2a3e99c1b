"""Times real steps, launch by launch, and what the engine adds to them, on a machine that others use, too.

Others delay some launches of every step, so that of each launch the least of its repetitions is taken, and
the repetitions go round over all steps. On a quiet machine the least times of the launches of SmolLM2 and of
a 1B shape add up to 93 to 97 % of the median step.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tokc.cost.profiling import TimesKernels
from tokc.cost.step_model import Step
from tokc.errors import TokcError
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch, Executor, Logits

STEPS_A_ROUND = 4


@dataclass
class TimedStep:
    """A step, and what was timed of it: each launch with the wait after it, and what is outside launches."""

    step: Step
    batch: Batch
    _launches: list[npt.NDArray[np.float64]] = field(default_factory=list)
    _outside: list[float] = field(default_factory=list)

    def run(self, executor: TimesKernels) -> None:
        """Take the step a few times; the first brings its code and activations near."""
        executor.step(self.batch)
        for _ in range(STEPS_A_ROUND):
            start_s = time.perf_counter()
            seconds = executor.profile(self.batch).sum(axis=1)
            self._outside.append(time.perf_counter() - start_s - float(seconds.sum()))
            self._launches.append(seconds)

    def launches_s(self) -> npt.NDArray[np.float64]:
        """Return the least seconds of each launch, f64[launches]."""
        return np.asarray(np.min(self._launches, axis=0))

    def outside_s(self) -> float:
        """Return the least seconds of a step outside its launches."""
        return min(self._outside)


def timed_steps(engine: Engine, decodes: Sequence[Step], chunks: Sequence[Step]) -> tuple[TimedStep, ...]:
    """Fill the cache as far as the steps need it, and return them; their tokens are random.

    Raises: TokcError if the context or the cache is too small for them.
    """
    executor = engine.executor
    depths = [
        max(step.context for step in decodes if step.sequences > row)
        for row in range(max(step.sequences for step in decodes))
    ]
    page = executor.page_size
    pages = [-(-depth // page) for depth in depths]
    if max(depths) > executor.context_length or sum(pages) > executor.num_pages:
        raise TokcError(
            f"steps of {max(depths)} tokens of context, {sum(pages)} pages of cache in all, do not fit",
            hint="build the artifact with a larger --context",
        )
    tables = np.zeros((len(depths), max(pages)), np.int32)
    first = np.cumsum([0, *pages])
    for row, count in enumerate(pages):
        tables[row, :count] = np.arange(first[row], first[row] + count)
    for row, depth in enumerate(depths):
        for start in range(0, depth, executor.max_tokens):
            stop = min(start + executor.max_tokens, depth)
            executor.step(_batch(executor, tables[row : row + 1], range(start, stop)))
    found = []
    for step in (*decodes, *chunks):
        positions = range(step.context - step.tokens, step.context)
        found.append(TimedStep(step, _batch(executor, tables[: step.sequences], positions)))
    return tuple(found)


def _batch(executor: Executor, tables: npt.NDArray[np.int32], positions: range) -> Batch:
    """Return a step of random tokens at `positions` of each of `tables`; the last logits are wanted."""
    sequences, tokens = len(tables), len(tables) * len(positions)
    random = np.random.default_rng(tokens)
    return Batch(
        input_ids=random.integers(executor.vocab_size, size=tokens).astype(np.int32),
        positions=np.tile(np.array(positions, np.int32), sequences),
        sequences=np.repeat(np.arange(sequences, dtype=np.int32), len(positions)),
        block_tables=np.ascontiguousarray(tables[:, : -(-positions.stop // executor.page_size)]),
        logit_rows=np.arange(len(positions) - 1, tokens, len(positions), dtype=np.int32),
    )


@dataclass
class StepWatch:
    """Begin and end of each step that an engine takes, and how many tokens and wanted logits it has."""

    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def intervals(self, batch: int) -> list[float]:
        """Return the seconds from one decode step of `batch` sequences to the next."""
        return [self.begins[at + 1] - self.begins[at] for at in self._decodes(batch)]

    def gaps(self, batch: int) -> list[float]:
        """Return the seconds between such steps: scheduling, sampling and text."""
        return [self.begins[at + 1] - self.ends[at] for at in self._decodes(batch)]

    def _decodes(self, batch: int) -> Iterator[int]:
        wanted = (batch, batch)
        return (at for at in range(len(self.sizes) - 1) if self.sizes[at] == self.sizes[at + 1] == wanted)


@contextmanager
def watching(engine: Engine) -> Iterator[StepWatch]:
    """Note the times of the steps that the engine takes meanwhile."""
    executor, watch = engine.executor, StepWatch()
    step = executor.step

    def timed(batch: Batch) -> Logits:
        watch.sizes.append((len(batch.input_ids), len(batch.logit_rows)))
        watch.begins.append(time.perf_counter())
        logits = step(batch)
        watch.ends.append(time.perf_counter())
        return logits

    vars(executor)["step"] = timed
    try:
        yield watch
    finally:
        del vars(executor)["step"]
