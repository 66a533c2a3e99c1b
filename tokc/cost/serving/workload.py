"""Workloads: the requests of a kind of product, made of a text, or a trace of the user's own.

Lengths are drawn log-normally, since those of real traffic are skewed: of most products a few long requests
hold most of the tokens. The shape parameters are ours, round figures of the kind that published traces show
(ShareGPT, Azure LLM inference 2023, Mooncake), not fitted to one of them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokc.errors import TokcError, UnknownOption

CHARACTERS_PER_TOKEN = 4
KEYS = ("prompt", "output_tokens", "at_s")


@dataclass(frozen=True)
class Ask:
    """A request: its prompt, how many tokens its answer has, and when it comes, if the workload says so."""

    prompt: str
    output_tokens: int
    at_s: float | None = None


@dataclass(frozen=True)
class Shape:
    """A workload's lengths in tokens: medians, and deviations of their logarithms.

    `shared` tokens at the beginning are the same in all requests, as a system prompt is; `turns` requests in
    a row each begin with all that was said before, as those of an agent do.
    """

    summary: str
    shared: int
    prompt: float
    prompt_spread: float
    output: float
    output_spread: float
    turns: int = 1
    longest: int = 2048


SHAPES: Mapping[str, Shape] = {
    "chat": Shape("short questions behind a system prompt", 60, 100, 0.8, 100, 0.6, longest=800),
    "rag": Shape("questions about long passages", 80, 900, 0.4, 60, 0.5),
    "code": Shape("edits of one file that all requests begin with", 500, 150, 0.6, 120, 0.5),
    "agent": Shape("conversations that grow turn by turn", 200, 60, 0.5, 40, 0.5, turns=6),
}
WORKLOADS = tuple(SHAPES)


@dataclass(frozen=True)
class Workload:
    """A kind of requests; those of one repetition differ from those of another, but for a trace's."""

    name: str
    summary: str
    sha256: str
    text: str = ""
    shape: Shape | None = None
    trace: tuple[Ask, ...] = ()

    @property
    def timed(self) -> bool:
        """Return whether it says when its requests come."""
        return bool(self.trace) and all(ask.at_s is not None for ask in self.trace)

    def asks(self, repetition: int, count: int) -> tuple[Ask, ...]:
        """Return the requests of a repetition: `count`, or all of a trace if it has fewer."""
        if self.shape is None:
            return self.trace[:count]
        return _drawn(self.shape, self.text, np.random.default_rng(repetition), count)


def named_workload(name: str, text: str) -> Workload:
    """Return a workload by name, made of `text`, or that of a file of JSON lines.

    Raises: UnknownOption listing the names; TokcError naming the line of a trace that is wrong.
    """
    if name in SHAPES:
        shape = SHAPES[name]
        digest = hashlib.sha256(f"{name} {shape} {text}".encode()).hexdigest()
        return Workload(name, shape.summary, digest, text, shape)
    path = Path(name)
    if not path.is_file():
        raise UnknownOption(
            f"unknown workload '{name}'; choose from {', '.join(SHAPES)}, or name a file of JSON lines"
        )
    content = path.read_bytes()
    lines = [line for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    trace = tuple(_read(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
    if not trace:
        raise UnknownOption(f"'{path}' holds no request")
    ordered = tuple(sorted(trace, key=lambda ask: ask.at_s or 0.0))
    return Workload(
        path.name, f"{len(trace)} requests of a trace", hashlib.sha256(content).hexdigest(), trace=ordered
    )


def _read(line: str, where: str) -> Ask:
    """Return the request of a line of a trace."""
    hint = 'as in {"prompt": "Hello", "output_tokens": 20, "at_s": 0.5}; `at_s` may be left out'
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UnknownOption(f"the line is not JSON: {error}", where=where, hint=hint) from error
    if not isinstance(value, dict):
        raise UnknownOption("the line is no object", where=where, hint=hint)
    for key in value:
        if key not in KEYS:
            raise UnknownOption(f"unknown key '{key}'; choose from {', '.join(KEYS)}", where=where, hint=hint)
    prompt, output, at_s = (value.get(key) for key in KEYS)
    if not isinstance(prompt, str) or not prompt:
        raise UnknownOption(f"'prompt' is '{prompt}', expected a text", where=where, hint=hint)
    if not isinstance(output, int) or isinstance(output, bool) or output < 1:
        raise UnknownOption(f"'output_tokens' is '{output}', expected at least 1", where=where, hint=hint)
    if at_s is not None and not (isinstance(at_s, int | float) and math.isfinite(at_s) and at_s >= 0):
        raise UnknownOption(f"'at_s' is '{at_s}', expected seconds from 0 on", where=where, hint=hint)
    return Ask(prompt, output, None if at_s is None else float(at_s))


def _drawn(shape: Shape, text: str, random: np.random.Generator, count: int) -> tuple[Ask, ...]:
    if len(text) < shape.longest * CHARACTERS_PER_TOKEN:
        raise TokcError("the text is too short to make requests of", hint="give a longer one")
    shared = text[: shape.shared * CHARACTERS_PER_TOKEN]
    asks: list[Ask] = []
    said = shared
    for index in range(count):
        if index % shape.turns == 0:
            said = shared
        length = _length(shape.prompt, shape.prompt_spread, shape, random)
        prompt = said + "\n\n" + _passage(text, length, random)
        output = _length(shape.output, shape.output_spread, shape, random)
        asks.append(Ask(prompt, max(2, output)))
        if shape.turns > 1:  # what was answered is replaced by a passage as long
            said = prompt + "\n\n" + _passage(text, output, random)
    return tuple(asks)


def _length(median: float, spread: float, shape: Shape, random: np.random.Generator) -> int:
    """Draw a number of tokens."""
    return int(min(max(1.0, random.lognormal(math.log(median), spread)), shape.longest))


def _passage(text: str, tokens: int, random: np.random.Generator) -> str:
    """Return about so many tokens of the text, from a place drawn."""
    size = tokens * CHARACTERS_PER_TOKEN
    start = int(random.integers(0, len(text) - size + 1))
    return text[start : start + size]
