"""What is timed, the same for every program: model steps with the greedy choice of the next token.

Prefill is one prompt, whose last logits alone are computed. Decode feeds each sequence its own choice, one
token a step, from the end of the prompt on; the repeats follow one another in the same cache. Verify times
steps of one sequence, of one token and of k tokens with k rows of logits, in turns in the same cache.
"""

import argparse
import json
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Kind = Literal["prefill", "decode", "verify"]

FIRST_TOKEN = 10
KIB = 1024
VERIFY_STEPS = 8


class Side(Protocol):
    """A program under measurement, with a model loaded and room for the span's sequences."""

    vocab: int

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        ...

    def step(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        ...

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        """Run tokens of sequence 0 from `position` on; returns the greedy next token after each of them."""
        ...


class OwnChoice(ABC):
    """A program that generates in a loop of its own: it feeds its own choices, one token a step."""

    def step(self, tokens: Tokens, position: int) -> Tokens:  # noqa: ARG002 - it feeds its own choice
        """Run the tokens that it chose last; returns the greedy next tokens."""
        return self.following(len(tokens))

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        """Refuse: no call continues a cache with several tokens and tells what follows each."""
        raise NotImplementedError

    @abstractmethod
    def following(self, sequences: int) -> Tokens:
        """Return the next token of every sequence."""


@dataclass(frozen=True)
class Span:
    """What a process measures; `tokens` are a repeat's decode steps, or what a step verifies."""

    kind: Kind
    sequences: int = 1
    prompt: int = 64
    tokens: int = 64
    repeats: int = 3

    @property
    def context(self) -> int:
        """Return how many tokens a sequence comes to hold at most."""
        match self.kind:
            case "prefill":
                return self.prompt + 1
            case "decode":
                return self.prompt + 1 + self.repeats * self.tokens
            case "verify":
                return self.prompt + (self.repeats + 1) * VERIFY_STEPS * (self.tokens + 1)

    def arguments(self) -> list[str]:
        """Return the command line that `main` reads back."""
        return [self.kind, *(str(n) for n in (self.sequences, self.prompt, self.tokens, self.repeats))]


def measure(side: Side, span: Span) -> tuple[float, list[Any]]:
    """Return the best figure and its repeats: tokens a second; of verify a ratio, and both steps' seconds."""
    random = np.random.default_rng(0)
    match span.kind:
        case "prefill":
            rates = _prefill(side, span, random)
            return max(rates), rates
        case "decode":
            rates = _decode(side, span, random)
            return max(rates), rates
        case "verify":
            pairs = _verify(side, span, random)
            best = min(many for _, many in pairs) / min(one for one, _ in pairs)
            return best, pairs


def _prefill(side: Side, span: Span, random: np.random.Generator) -> list[float]:
    rates = []
    for _ in range(span.repeats + 1):
        prompt = _prompts(side, span, random)
        start = time.perf_counter()
        side.start(prompt)
        rates.append(span.prompt / (time.perf_counter() - start))
    return rates[1:]


def _decode(side: Side, span: Span, random: np.random.Generator) -> list[float]:
    tokens = side.start(_prompts(side, span, random))
    position = span.prompt
    tokens = side.step(tokens, position)
    rates = []
    for _ in range(span.repeats):
        start = time.perf_counter()
        for _ in range(span.tokens):
            position += 1
            tokens = side.step(tokens, position)
        rates.append(span.sequences * span.tokens / (time.perf_counter() - start))
    return rates


def _verify(side: Side, span: Span, random: np.random.Generator) -> list[tuple[float, float]]:
    """Return the seconds of a step of one token and of k, of each repeat."""
    last = side.start(_prompts(side, span, random))
    position = span.prompt
    pairs = []
    for _ in range(span.repeats + 1):
        seconds: dict[int, list[float]] = {1: [], span.tokens: []}
        for count, taken in seconds.items():
            for _ in range(VERIFY_STEPS):
                tokens = random.integers(FIRST_TOKEN, side.vocab - FIRST_TOKEN, count, dtype=np.int32)
                start = time.perf_counter()
                last = side.verify(tokens, position) if count > 1 else side.step(tokens, position)
                taken.append(time.perf_counter() - start)
                assert len(last) == count, f"{len(last)} rows of logits for {count} tokens"
                position += count
        pairs.append((statistics.median(seconds[1]), statistics.median(seconds[span.tokens])))
    return pairs[1:]


def _prompts(side: Side, span: Span, random: np.random.Generator) -> Tokens:
    shape = span.sequences, span.prompt
    return random.integers(FIRST_TOKEN, side.vocab - FIRST_TOKEN, shape, dtype=np.int32)


def peak_rss_mb() -> float:
    """Return this program's own peak; getrusage would count what its parent held before the exec."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / KIB


def main(
    load: Callable[[str, Span, int], Side], facts: Callable[[Side, Span], dict[str, Any]] | None = None
) -> None:
    """Measure what the command line asks for, and print it with `facts` of the side as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("kind", choices=["prefill", "decode", "verify"])
    for name in ("sequences", "prompt", "tokens", "repeats"):
        parser.add_argument(name, type=int)
    asked = parser.parse_args()
    span = Span(asked.kind, asked.sequences, asked.prompt, asked.tokens, asked.repeats)
    start = time.perf_counter()
    side = load(asked.model, span, asked.threads)
    load_s = time.perf_counter() - start
    value, repeats = measure(side, span)
    # The peak first: what gives the facts may take memory of its own.
    found = {"value": value, "repeats": repeats, "load_s": load_s, "rss_mb": peak_rss_mb()}
    print(json.dumps({**found, **(facts(side, span) if facts else {})}), flush=True)
