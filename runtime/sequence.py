"""A request's parameters, its state while it runs, and what comes back."""

import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from tokc.errors import RequestRefused
from tokc.runtime.grammar import Constraint, Matcher
from tokc.runtime.penalties import PenaltyState

FinishReason = Literal["stop", "length", "abort"]

MAX_LOGPROBS = 20


class SamplingOptions(TypedDict, total=False):
    """Name the fields of SamplingParams as keyword arguments; one test keeps the two equal."""

    max_tokens: int | None
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    logprobs: int | None
    stop: Items[str]
    stop_token_ids: Items[int]
    ignore_eos: bool
    min_tokens: int
    constraint: Constraint | None


@dataclass(frozen=True)
class SamplingParams:
    """Say how to choose tokens and when to end.

    `max_tokens` None runs to the end of the context; `temperature` 0 is greedy; `top_k` None, `top_p` 1 and
    `min_p` 0 are off; `seed` None draws one. `logprobs` is how many alternatives to report a token (0: the
    chosen one only, None: nothing); they are the model's own, before penalties and temperature. The text
    ends before the first of the `stop` strings. `stop_token_ids` end an answer as the model's own end does,
    also with `ignore_eos`; nothing but `max_tokens` ends it in its first `min_tokens` tokens. Penalties:
    `repetition` multiplies over prompt and output, `presence` and `frequency` subtract over the output.
    An answer that ends by itself matches the `constraint`.
    Raises: RequestRefused naming the field that is out of range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    stop: Items[str] = ()
    stop_token_ids: Items[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        # To a type checker a lone text is a row of characters; each of them would end the answer.
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        rules = (
            ("max_tokens", "at least 1", self.max_tokens is None or self.max_tokens >= 1),
            ("temperature", "between 0 and 100", 0 <= self.temperature <= 100),
            ("top_k", "at least 1", self.top_k is None or self.top_k >= 1),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", "between 0 and 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", "above 0", self.repetition_penalty > 0),
            ("presence_penalty", "between -2 and 2", abs(self.presence_penalty) <= 2),
            ("frequency_penalty", "between -2 and 2", abs(self.frequency_penalty) <= 2),
            ("logprobs", f"between 0 and {MAX_LOGPROBS}", 0 <= (self.logprobs or 0) <= MAX_LOGPROBS),
            (
                "min_tokens",
                "at least 0 and at most max_tokens",
                0 <= self.min_tokens <= (self.max_tokens or self.min_tokens),
            ),
            ("stop", "a row of texts, none empty", all(self.stop)),
            ("ignore_eos", "false with a constraint", not (self.ignore_eos and self.constraint)),
        )
        for name, expected, holds in rules:
            if not holds:
                raise RequestRefused(f"{name} is '{getattr(self, name)}', expected {expected}", where=name)

    @cached_property
    def adjusts(self) -> bool:
        """Say whether logits are changed by anything but temperature."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @cached_property
    def plain_greedy(self) -> bool:
        """Say whether the token is simply the largest logit and nothing else is asked."""
        return self.temperature == 0 and self.logprobs is None and self._plain

    @cached_property
    def scale(self) -> float:
        """Return 1 / temperature in f32 where tokens are drawn from the model's own logits, else 0."""
        return float(np.float32(1 / self.temperature)) if self.temperature > 0 and self._plain else 0.0

    @property
    def _plain(self) -> bool:
        return self.min_tokens == 0 and self.constraint is None and not self.adjusts


class Logprob(NamedTuple):
    """Report a token's natural log probability and the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Usage(NamedTuple):
    """Count tokens; `cached_tokens` of the prompt were found in the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timing(NamedTuple):
    """State seconds: waiting for a place, to the first token, a token after that, and in all.

    `queue_s` and `ttft_s` count from submission; `tpot_s` is None below two tokens.
    """

    queue_s: float
    ttft_s: float
    tpot_s: float | None
    total_s: float


class Delta(NamedTuple):
    """Report one more token; `text` may be empty while a character or a stop string is incomplete."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None


class Result(NamedTuple):
    """Report a finished request; `token_ids` include the token that ended it, `text` does not."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] | None
    finish_reason: FinishReason
    usage: Usage
    timing: Timing


class Sequence:
    """Holds the state of one request: its tokens, its pages, how far it was computed."""

    __slots__ = (
        "arrival",
        "cache_salt",
        "cached_tokens",
        "computed",
        "digests",
        "eos_ids",
        "finish_reason",
        "finished_s",
        "first_token_s",
        "last_output",
        "matcher",
        "pages",
        "params",
        "penalties",
        "priority",
        "prompt_length",
        "sealed",
        "seed",
        "slot",
        "started_s",
        "submitted_s",
        "tabled",
        "tokens",
        "uniforms",
    )

    def __init__(self, prompt: Items[int], params: SamplingParams, *, seed: int, last_output: int) -> None:
        """Start with nothing computed; `last_output` bounds the number of output tokens."""
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.params = params
        self.seed = seed
        self.uniforms: tuple[int, list[float]] | None = None  # the sampler's, from a token on
        self.last_output = last_output
        self.eos_ids: frozenset[int] = frozenset()
        self.arrival = -1
        self.cache_salt = b""
        self.priority = 0
        self.pages: list[int] = []
        self.digests: list[bytes] = []
        self.sealed = 0
        self.computed = 0
        self.slot: int | None = None
        self.tabled = 0
        self.penalties: PenaltyState | None = None
        self.matcher: Matcher | None = None
        self.cached_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self.submitted_s = time.perf_counter()
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None

    @property
    def output(self) -> list[int]:
        """Return the tokens made so far."""
        return self.tokens[self.prompt_length :]

    @property
    def output_length(self) -> int:
        """Return how many tokens were made so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def usage(self) -> Usage:
        """Return the counts so far."""
        return Usage(self.prompt_length, self.output_length, self.cached_tokens or 0)

    @property
    def timing(self) -> Timing:
        """Return the times of a finished sequence."""
        end = self.finished_s or time.perf_counter()
        first = self.first_token_s or end
        made = self.output_length
        return Timing(
            queue_s=(self.started_s or end) - self.submitted_s,
            ttft_s=first - self.submitted_s,
            tpot_s=(end - first) / (made - 1) if made > 1 else None,
            total_s=end - self.submitted_s,
        )

    def append(self, token: int) -> None:
        """Add an output token and say whether it ends the sequence, in `finish_reason`."""
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now
        self.tokens.append(token)
        if token in self.eos_ids:
            self.finish_reason = "stop"
        elif self.output_length >= self.last_output:
            self.finish_reason = "length"
