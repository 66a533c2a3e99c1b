"""Times the kernels of an engine's executor, in steps like those that it serves."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tokc.cost.devices import Host
from tokc.cost.profile import DECODE, PREFILL, Profile, Roofs, StepProfile, summarize
from tokc.cost.spread import Spread
from tokc.errors import TokcError
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch, Float32s

WARM_UP_STEPS = 3
LEAST_STEPS, MOST_STEPS, STEPS_S = 7, 200, 1.5
ENGINE_REPETITIONS = 5
HALF_ANSWER = 16
CHUNK_TOKENS = 512


@runtime_checkable
class TimesKernels(Protocol):
    """An executor that can time every launch of its plan."""

    plan: Mapping[str, Any]
    threads: int

    def step(self, batch: Batch) -> Float32s:
        """Run one step."""
        ...

    def profile(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Run one step; returns seconds f64[launches, 2]: in the kernel, and waiting after it."""
        ...


@dataclass(frozen=True)
class Steps:
    """Which steps to profile: decoding at each batch size with `context` tokens, and a prefill chunk.

    `chunk` None is 512 tokens, or as many as a step can have.
    """

    batches: tuple[int, ...]
    context: int
    chunk: int | None = None

    def chunk_tokens(self, engine: Engine) -> int:
        """Return the tokens of the chunk."""
        most = min(engine.executor.max_tokens, engine.context_length)
        return min(CHUNK_TOKENS, most) if self.chunk is None else self.chunk


def profile(engine: Engine, host: Host, steps: Steps, progress: Callable[[str], None]) -> Profile:
    """Profile each step; the executor's cache is overwritten, so that the engine must not answer afterwards.

    Raises: TokcError if the executor does not time its kernels, or a step exceeds the context or the cache.
    """
    executor = engine.executor
    if not isinstance(executor, TimesKernels):
        raise TokcError(
            f"an executor of kind '{type(executor).__name__}' does not time its kernels",
            hint="leave out --profile",
        )
    _check(engine, steps)
    engine_s = {}
    for count in steps.batches:
        progress(f"time the engine at batch {count}, {steps.context} tokens of context")
        engine_s[count] = _engine_s(engine, count, steps.context)
    roofs = Roofs.of(host)
    found = []
    for count in steps.batches:
        progress(f"profile a decode step of {count} with {steps.context} tokens of context")
        batch = _decode_batch(engine, count, steps.context)
        found.append(_step_profile(executor, batch, roofs, DECODE, engine_s[count]))
    chunk = steps.chunk_tokens(engine)
    progress(f"profile a prefill chunk of {chunk} tokens")
    found.append(_step_profile(executor, _batch(engine, 1, range(chunk), chunk), roofs, PREFILL, None))
    return Profile(executor.threads, roofs, tuple(found))


def _check(engine: Engine, steps: Steps) -> None:
    executor, half = engine.executor, _half_answer(steps.context)
    most = max(steps.batches)
    pages = most * -(-(steps.context + half) // executor.page_size)
    for count, limit, what, option in (
        (steps.context + half, engine.context_length, "tokens of context", "--context"),
        (
            steps.chunk_tokens(engine),
            min(executor.max_tokens, engine.context_length),
            "tokens of a prefill chunk",
            "--chunk",
        ),
        (most, min(executor.max_seqs, executor.max_tokens), "requests at once", "--batch"),
        (pages, executor.num_pages, "pages of the cache", "--context or --batch"),
    ):
        if count > limit:
            raise TokcError(f"{count} {what} exceed the limit of {limit}", hint=f"lower {option}")


def _half_answer(context: int) -> int:
    return min(HALF_ANSWER, context // 2)


def _engine_s(engine: Engine, batch: int, context: int) -> Spread:
    """Return the engine's time per token of each sequence, around `context` tokens of context.

    The prompts are in the prefix cache, so that all first tokens come at once and only decoding is timed.
    """
    half, random = _half_answer(context), np.random.default_rng(batch)
    prompts = random.integers(engine.executor.vocab_size, size=(batch, context - half)).tolist()
    times = []
    for repetition in range(1 + ENGINE_REPETITIONS):
        results = engine.generate_all(prompts, max_tokens=2 * half, ignore_eos=True)
        if repetition:
            times.append(float(np.median([result.timing.tpot_s or 0.0 for result in results])))
    return Spread.of(times)


def _decode_batch(engine: Engine, sequences: int, context: int) -> Batch:
    """Fill the cache with the tokens before the last one, and return the step of the last one."""
    chunk = engine.executor.max_tokens // sequences
    for start in range(0, context - 1, chunk):
        stop = min(start + chunk, context - 1)
        engine.executor.step(_batch(engine, sequences, range(start, stop), context))
    return _batch(engine, sequences, range(context - 1, context), context)


def _batch(engine: Engine, sequences: int, positions: range, context: int) -> Batch:
    """Return a step of random tokens at `positions` of each sequence, which has pages for `context` tokens.

    The logits of each last one are wanted.
    """
    pages = -(-context // engine.executor.page_size)
    tokens = sequences * len(positions)
    random = np.random.default_rng(positions.start)
    return Batch(
        input_ids=random.integers(engine.executor.vocab_size, size=tokens).astype(np.int32),
        positions=np.tile(np.array(positions, np.int32), sequences),
        sequences=np.repeat(np.arange(sequences, dtype=np.int32), len(positions)),
        block_tables=np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages),
        logit_rows=np.arange(len(positions) - 1, tokens, len(positions), dtype=np.int32),
    )


def _step_profile(
    executor: TimesKernels, batch: Batch, roofs: Roofs, step: str, engine_s: Spread | None
) -> StepProfile:
    plain, profiled, seconds = _repeat(executor, batch)
    kernels = summarize(executor.plan, batch, seconds, roofs)
    sums = seconds.sum(axis=1)
    kernels_s, barriers_s = np.median(sums, axis=0)
    return StepProfile(
        step=step,
        sequences=len(batch.block_tables),
        tokens=len(batch.input_ids),
        context=int(batch.positions.max()) + 1,
        kernels=kernels,
        kernels_s=float(kernels_s),
        barriers_s=float(barriers_s),
        edges_s=float(np.median(np.array(profiled) - sums.sum(axis=1))),
        step_s=Spread.of(plain),
        profiled_s=Spread.of(profiled),
        engine_s=engine_s,
    )


def _repeat(
    executor: TimesKernels, batch: Batch
) -> tuple[Sequence[float], Sequence[float], npt.NDArray[np.float64]]:
    """Return the wall times of steps without and with a profile, taken in turn, and the profiles."""
    for _ in range(WARM_UP_STEPS):
        executor.step(batch)
    plain: list[float] = []
    profiled: list[float] = []
    seconds: list[npt.NDArray[np.float64]] = []
    until_s = time.perf_counter() + STEPS_S
    while len(plain) < LEAST_STEPS or (len(plain) < MOST_STEPS and time.perf_counter() < until_s):
        start_s = time.perf_counter()
        executor.step(batch)
        middle_s = time.perf_counter()
        seconds.append(executor.profile(batch))
        profiled.append(time.perf_counter() - middle_s)
        plain.append(middle_s - start_s)
    return plain, profiled, np.stack(seconds)
