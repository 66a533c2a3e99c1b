"""What Python adds to a step: `python -m bench.step_overhead ARTIFACT --out out/bench/overhead.json`.

Sequences decode together, as a server's do: each step is scheduled, its tables are written, the kernels run,
tokens are chosen and turned into text. Times are of the thread that makes the steps, by its own clock, which
stops while another program has the core. It computes beside the pool's threads and spins at their barriers,
so that its time in the kernels grows where others use the cores: the share is that of the median Python time
in a step of the least time in the kernels, the worst case.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.__main__ import write
from tokc.quality.text import evaluation_text
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.request import Request
from tokc.runtime.scheduler import Scheduler
from tokc.runtime.sequence import SamplingParams

PROMPT_TOKENS, WARM_STEPS = 64, 8
PARAMS = (
    SamplingParams(ignore_eos=True),
    SamplingParams(ignore_eos=True, temperature=0.8, top_p=0.95, seed=1),
)
PARTS = ("schedule", "tables", "sample", "text")


@dataclass(frozen=True)
class Overhead:
    """Microseconds of a decode step: the least in kernels, medians of Python and of its parts."""

    sequences: int
    steps: int
    sampling: str
    kernels_us: float
    python_us: float
    parts_us: dict[str, float]

    @property
    def share(self) -> float:
        """Return Python's share of the step."""
        return self.python_us / (self.kernels_us + self.python_us)


class Clock:
    """Adds up the thread time of calls by name, those within another call taken out of it."""

    def __init__(self) -> None:
        """Start with no calls."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, counted under `name`."""

        def counted(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                taken = time.thread_time() - began
                self.seconds[name] += taken - self._inner.pop()
                self._inner[-1] += taken

        return counted


class Kernels:
    """The library of an artifact, its step counted."""

    def __init__(self, library: Any, clock: Clock) -> None:
        """Stand before `library`."""
        self._library = library
        self.tokc_step = clock.timed("kernels", library.tokc_step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


def watch_kernels(engine: Engine, clock: Clock) -> None:
    """Count the kernels' time."""
    executor = engine.executor
    assert isinstance(executor, CpuExecutor), "the kernels' time is known on a CPU"
    executor._library = Kernels(executor._library, clock)  # type: ignore[assignment] # noqa: SLF001


def watch_parts(clock: Clock) -> None:
    """Count the parts of the Python time too, which takes some itself."""
    for owner, method, name in (
        (Scheduler, "schedule", "schedule"),
        (Scheduler, "computed", "schedule"),
        (Core, "_batch", "tables"),
        (CpuExecutor, "_load", "tables"),
        (Core, "_choose", "sample"),
        (Request, "receive", "text"),
    ):
        setattr(owner, method, clock.timed(name, getattr(owner, method)))


def measure(engine: Engine, clock: Clock, *, sequences: int, steps: int, params: SamplingParams) -> Overhead:
    """Decode `sequences` prompts together for so many steps."""
    text = engine.tokenizer.encode(evaluation_text())
    starts = range(0, sequences * PROMPT_TOKENS, PROMPT_TOKENS)
    requests = [engine.request(text[start : start + PROMPT_TOKENS], params) for start in starts]
    loop = engine._loop  # noqa: SLF001 - what follows a request, step by step
    for request in requests:
        loop.submit(request)
    while any(not request.deltas for request in requests):
        engine.step()
    rows: list[dict[str, float]] = []
    for index in range(WARM_STEPS + steps):
        clock.seconds.clear()
        began = time.thread_time()
        made = engine.step()
        step_s = time.thread_time() - began
        assert made == sequences, f"step {index} made {made} tokens of {sequences} sequences"
        rows.append({"step": step_s, **clock.seconds})
        for request in requests:
            request.deltas.clear()
    loop.abort(requests)
    return summary(rows[WARM_STEPS:], sequences, params)


def summary(rows: list[dict[str, float]], sequences: int, params: SamplingParams) -> Overhead:
    """Return the medians of steps in seconds."""

    def median_us(seconds: Iterable[float]) -> float:
        return round(1e6 * statistics.median(seconds), 1)

    drawn = f"temperature {params.temperature}, top_p {params.top_p}"
    parts = {name: median_us(row[name] for row in rows) for name in PARTS if name in rows[0]}
    return Overhead(
        sequences=sequences,
        steps=len(rows),
        sampling="greedy" if params.plain_greedy else drawn,
        kernels_us=round(1e6 * min(row["kernels"] for row in rows), 1),
        python_us=median_us(row["step"] - row["kernels"] for row in rows),
        parts_us=parts,
    )


def main() -> None:
    """Measure greedy and drawn tokens at the batch that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = []
    clock = Clock()
    with Engine.open(asked.artifact, threads=asked.threads) as engine:
        engine.prepare()
        watch_kernels(engine, clock)
        for params in (*PARAMS, *PARAMS):
            if len(found) == len(PARAMS):
                watch_parts(clock)
            one = measure(engine, clock, sequences=asked.sequences, steps=asked.steps, params=params)
            found.append({**asdict(one), "share": round(one.share, 4)})
            print(json.dumps(found[-1]), flush=True)
    if asked.out is not None:
        write(asked.out, {"artifact": asked.artifact.name, "threads": asked.threads, "rows": found})


if __name__ == "__main__":
    main()
