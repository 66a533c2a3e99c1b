"""Measures an engine in a closed loop: a batch is sent, answered to its last token, and sent again."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tokc.cost.devices import Host
from tokc.cost.drafted import Drafted
from tokc.cost.profile import Profile
from tokc.cost.spread import Spread
from tokc.errors import TokcError
from tokc.runtime.engine import Engine

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Point:
    """What was measured at one batch size.

    `ttft_s` is the mean time to the first token over the batch's requests, `tpot_s` that between later ones;
    `tokens_per_s` are output tokens over the whole time, prefill included; `prefill_tokens_per_s` are prompt
    tokens over the time until every request had its first token.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: Spread
    tpot_s: Spread
    tokens_per_s: Spread
    prefill_tokens_per_s: Spread


@dataclass(frozen=True)
class Bench:
    """A run of the bench: which artifact, on which machine, with what result.

    `foreign_cpu` is the share of the cores that other programs took meanwhile; `profile` is None where no
    kernel was timed; `drafted` is empty where nothing drafts.
    """

    artifact: str
    manifest_sha256: str
    measured_at: str
    host: Host
    load_s: float
    peak_rss_bytes: int
    points: tuple[Point, ...]
    foreign_cpu: float = 0.0
    profile: Profile | None = None
    drafted: tuple[Drafted, ...] = ()
    schema_version: int = 1


@dataclass(frozen=True)
class Load:
    """What is sent: tokens a prompt, tokens an answer, and how often after one warm-up."""

    prompt_tokens: int = 128
    output_tokens: int = 64
    repetitions: int = 3


def measure(
    engine: Engine, batches: Sequence[int], load: Load, progress: Callable[[str], None] = lambda _: None
) -> tuple[Point, ...]:
    """Measure each batch size; prompts are random tokens that no prefix cache knows.

    Raises: TokcError if a prompt and its answer do not fit the context.
    """
    require_fit(load, engine.context_length)
    prompts = Prompts(engine.executor.vocab_size, load.prompt_tokens)
    engine.generate_all(prompts.take(1), max_tokens=WARM_UP_TOKENS, ignore_eos=True)
    points = []
    for batch in batches:
        progress(
            f"batch {batch}: {load.prompt_tokens} + {load.output_tokens} tokens, {load.repetitions} times"
        )
        points.append(_point(engine, batch, load, prompts))
    return tuple(points)


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def require_fit(load: Load, context: int) -> None:
    """Refuse a load that does not fit a context, in tokens.

    Raises: TokcError.
    """
    if load.prompt_tokens + load.output_tokens > context:
        raise TokcError(
            f"{load.prompt_tokens} prompt and {load.output_tokens} answer tokens exceed the context of "
            f"{context}",
            hint="lower --prompt-tokens or --output-tokens",
        )


class Prompts:
    """Random prompts, each seen once, the same in every run."""

    def __init__(self, vocab: int, tokens: int) -> None:
        """Make prompts of so many tokens of a vocabulary."""
        self.random = np.random.default_rng(0)
        self.vocab, self.tokens = vocab, tokens

    def take(self, count: int) -> list[list[int]]:
        """Return the next prompts."""
        return [self.random.integers(self.vocab, size=self.tokens).tolist() for _ in range(count)]


class Run(NamedTuple):
    """The figures of one batch, as in `Point`."""

    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    prefill_tokens_per_s: float


def run_once(engine: Engine, prompts: list[list[int]], output_tokens: int, *, cache_salt: bytes = b"") -> Run:
    """Send a batch and wait for its last token; what was read with another salt is read again."""
    start_s = time.perf_counter()
    results = engine.generate_all(prompts, max_tokens=output_tokens, ignore_eos=True, cache_salt=cache_salt)
    wall_s = time.perf_counter() - start_s
    times = [result.timing for result in results]
    return Run(
        statistics.fmean(one.ttft_s for one in times),
        statistics.fmean(one.tpot_s or 0.0 for one in times),
        sum(result.usage.completion_tokens for result in results) / wall_s,
        sum(map(len, prompts)) / max(one.ttft_s for one in times),
    )


def _point(engine: Engine, batch: int, load: Load, prompts: Prompts) -> Point:
    runs = [run_once(engine, prompts.take(batch), load.output_tokens) for _ in range(load.repetitions)]
    ttft, tpot, rate, prefill = (Spread.of(values) for values in zip(*runs, strict=True))
    return Point(
        batch=batch,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        ttft_s=ttft,
        tpot_s=tpot,
        tokens_per_s=rate,
        prefill_tokens_per_s=prefill,
    )
