"""What is timed, the same for every program: model steps with the greedy choice of the next token.

Prefill is one prompt of 512 tokens, whose last logits alone are computed. Decode feeds each sequence its own
choice, one token a step, from a context of 64 tokens on; between repeats the caches go back to that context.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PROMPT_TOKENS = 64
FIRST_TOKEN = 10
KIB = 1024


class Side(Protocol):
    """A program under measurement, with a model loaded and room for `sequences`."""

    vocab: int

    def prefill(self, sequence: int, tokens: Tokens) -> int:
        """Run a prompt from position 0 on; returns the greedy next token."""
        ...

    def decode(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        ...

    def rewind(self, position: int) -> None:
        """Forget what all sequences hold from `position` on."""
        ...


@dataclass(frozen=True)
class Span:
    """What a process measures: prefill of `tokens` if `sequences` is 0, else as many decode `tokens` each."""

    sequences: int
    tokens: int
    repeats: int = 3

    @property
    def context(self) -> int:
        """Return how many tokens a sequence comes to hold."""
        return self.tokens if self.sequences == 0 else PROMPT_TOKENS + self.tokens


def measure(side: Side, span: Span) -> list[float]:
    """Return the tokens a second of each repeat, after one that warms up."""
    random = np.random.default_rng(0)
    return _prefill(side, span, random) if span.sequences == 0 else _decode(side, span, random)


def _prefill(side: Side, span: Span, random: np.random.Generator) -> list[float]:
    rates = []
    for repeat in range(span.repeats + 1):
        side.rewind(0)
        prompt = _random_tokens(side, random, span.tokens)
        start = time.perf_counter()
        side.prefill(0, prompt)
        if repeat:
            rates.append(span.tokens / (time.perf_counter() - start))
    return rates


def _decode(side: Side, span: Span, random: np.random.Generator) -> list[float]:
    first = np.array(
        [side.prefill(i, _random_tokens(side, random, PROMPT_TOKENS)) for i in range(span.sequences)],
        np.int32,
    )
    side.decode(first, PROMPT_TOKENS)
    rates = []
    for _ in range(span.repeats):
        side.rewind(PROMPT_TOKENS)
        tokens = first
        start = time.perf_counter()
        for position in range(PROMPT_TOKENS, PROMPT_TOKENS + span.tokens):
            tokens = side.decode(tokens, position)
        rates.append(span.sequences * span.tokens / (time.perf_counter() - start))
    return rates


def _random_tokens(side: Side, random: np.random.Generator, count: int) -> Tokens:
    return random.integers(FIRST_TOKEN, side.vocab - FIRST_TOKEN, count, dtype=np.int32)


def peak_rss_mb() -> float:
    """Return this program's own peak; getrusage would count what its parent held before the exec."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / KIB


def main(load: Callable[[str, Span, int], Side]) -> None:
    """Measure what the command line asks for, and print it as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for option in ("--sequences", "--tokens", "--repeats", "--threads"):
        parser.add_argument(option, type=int, required=True)
    asked = parser.parse_args()
    span = Span(asked.sequences, asked.tokens, asked.repeats)
    start = time.perf_counter()
    side = load(asked.model, span, asked.threads)
    load_s = time.perf_counter() - start
    rates = measure(side, span)
    rss_mb = peak_rss_mb()
    print(json.dumps({"tokens_per_s": rates, "load_s": load_s, "rss_mb": rss_mb}), flush=True)
