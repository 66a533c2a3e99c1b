"""What is measured: a row each, with its goal."""

from dataclasses import dataclass
from typing import Literal

from bench.spans import Span

SMOLLM2, ONE_B = "smollm2-q4_0", "random-1b-q4_0"
LONG = 4096
VERIFY_PROMPT = 512


@dataclass(frozen=True)
class Scaling:
    """How many times the tokens a second of one thread two threads reach."""

    span: Span


@dataclass(frozen=True)
class ColdStart:
    """Seconds from the start of a process to the first token, through the program's ordinary Python API."""

    processes: int = 5


@dataclass(frozen=True)
class InstallSize:
    """Bytes of a fresh environment with what it takes to run a model, without pip."""


@dataclass(frozen=True)
class Goal:
    """What is wanted of tokc ÷ the best peer, or of tokc's own figure."""

    value: float
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True)
class Row:
    """A figure of every program."""

    model: str
    what: Span | Scaling | ColdStart | InstallSize
    goal: Goal | None
    unit: str = "tokens/s"
    lower_is_better: bool = False

    @property
    def kind(self) -> str:
        """Return the word that a program's `lacks` uses for it."""
        match self.what:
            case Span():
                return self.what.kind
            case Scaling():
                return "scaling"
            case ColdStart():
                return "cold_start"
            case InstallSize():
                return "install"


def _verify(model: str, tokens: int, goal: float) -> Row:
    span = Span("verify", prompt=VERIFY_PROMPT, tokens=tokens)
    return Row(model, span, Goal(goal, "value"), "steps of one token", lower_is_better=True)


SHORT_DECODE = Span("decode", tokens=24)
ROWS = {
    "decode_b1_smollm2": Row(SMOLLM2, Span("decode"), Goal(1.6)),
    "decode_b16_smollm2": Row(SMOLLM2, Span("decode", sequences=16, tokens=24), Goal(1.5)),
    "prefill512_smollm2": Row(SMOLLM2, Span("prefill", prompt=512), Goal(1.15)),
    "decode_b1_1b": Row(ONE_B, SHORT_DECODE, Goal(1.2)),
    "decode_b16_1b": Row(ONE_B, Span("decode", sequences=16, tokens=12, repeats=2), Goal(1.4)),
    "prefill512_1b": Row(ONE_B, Span("prefill", prompt=512, repeats=2), Goal(1.15)),
    "decode_b1_ctx4096_smollm2": Row(SMOLLM2, Span("decode", prompt=LONG), Goal(1.5)),
    "decode_b1_ctx4096_1b": Row(ONE_B, Span("decode", prompt=LONG, tokens=24), Goal(1.5)),
    "verify_k4_smollm2": _verify(SMOLLM2, 4, 1.35),
    "verify_k8_smollm2": _verify(SMOLLM2, 8, 1.8),
    "verify_k4_1b": _verify(ONE_B, 4, 1.35),
    "verify_k8_1b": _verify(ONE_B, 8, 1.8),
    "cold_start": Row(SMOLLM2, ColdStart(), Goal(0.5), "s", lower_is_better=True),
    "install_size": Row(SMOLLM2, InstallSize(), Goal(1.0), "bytes", lower_is_better=True),
    "threads_scaling_prefill": Row(
        SMOLLM2, Scaling(Span("prefill", prompt=512)), Goal(1.8, "value"), "times"
    ),
    "threads_scaling_decode": Row(SMOLLM2, Scaling(Span("decode")), None, "times"),
    "threads_scaling_decode_1b": Row(ONE_B, Scaling(SHORT_DECODE), None, "times"),
}
# The peak of memory is that of these two rows of a model.
RSS_ROWS = {
    "peak_rss_smollm2": ("decode_b1_smollm2", "prefill512_smollm2"),
    "peak_rss_1b": ("decode_b1_1b", "prefill512_1b"),
}
RSS_GOAL = 1.0
ROOF_GOALS = {"decode_b1_1b": 0.9}
# Of what memory gives two threads more than one.
SCALING_OF_LIMIT = 0.95
