"""Counts what the engine did: numbers that only grow, and histograms of times."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple

from tokc.runtime.sequence import Sequence

TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TPOT_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class DraftCounts:
    """Counts drafts: `verified` tokens in all; by place, the drafts that reached it and those that held."""

    def __init__(self) -> None:
        """Start with none."""
        self.drafts = self.verified = 0
        self.verified_at: list[int] = []
        self.accepted_at: list[int] = []

    @property
    def accepted(self) -> int:
        """Return how many of them held."""
        return sum(self.accepted_at)

    def add(self, nodes: int, depth: int, accepted: int) -> None:
        """Count a draft of so many tokens, in a row of `depth` at most, of which `accepted` held."""
        self.drafts += 1
        self.verified += nodes
        missing = depth - len(self.verified_at)
        self.verified_at += [0] * missing
        self.accepted_at += [0] * missing
        for place in range(depth):
            self.verified_at[place] += 1
            self.accepted_at[place] += place < accepted


class Histogram:
    """Counts observations at or below each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Start with no observation; `bounds` ascend."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """Return the number of observations."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add an observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass
class Counters:
    """Totals since the engine was opened; `finished` by reason (stop, length, abort).

    `prefill_s` and `decode_s` are the seconds of steps: one that holds both reads prompts for what it takes
    longer than a step of decoding alone took lately.
    """

    steps: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    generated_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    drafts: DraftCounts = field(default_factory=DraftCounts)
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0})
    ttft_s: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))
    tpot_s: Histogram = field(default_factory=lambda: Histogram(TPOT_BOUNDS_S))
    _decode_s: float | None = None

    def busy(self, seconds: float, *, prefill: int, decode: int) -> None:
        """Count the time of a step that computed so many tokens of prompts and of answers."""
        if not prefill:
            self._decode_s = seconds if self._decode_s is None else 0.9 * self._decode_s + 0.1 * seconds
        alone_s = seconds * decode / (prefill + decode) if self._decode_s is None else self._decode_s
        decode_s = seconds if not prefill else min(alone_s, seconds) if decode else 0.0
        self.decode_s += decode_s
        self.prefill_s += seconds - decode_s

    def finish(self, sequence: Sequence) -> None:
        """Count a sequence that ended."""
        usage, timing = sequence.usage, sequence.timing
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.completion_tokens
        self.finished[sequence.finish_reason or "abort"] += 1
        if sequence.first_token_s is not None:
            self.ttft_s.observe(timing.ttft_s)
        if timing.tpot_s is not None:
            self.tpot_s.observe(timing.tpot_s)


class Gauges(NamedTuple):
    """State of this moment."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    preemptions: int
