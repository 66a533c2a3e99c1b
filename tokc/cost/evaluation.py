"""What `tokc eval` measured of a model's quality, as it is kept beside an artifact."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokc.cost.intervals import student_95

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval over windows of text; None where there was one window only."""

    figure: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], shown: Callable[[float], float] = float) -> "Estimate":
        """Return the mean of one value a window, and Student's t interval of it, each as `shown` gives it.

        Tokens of one window are not independent, so that windows, not tokens, are what is counted.
        """
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(shown(mean))
        half = student_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(shown(mean), shown(mean - half), shown(mean + half))


@dataclass(frozen=True)
class Tokens:
    """Say what was read: `windows` of `window` tokens each, of which `scored` were predicted.

    `text` is a path or the name of a text that comes with tokc.
    """

    text: str
    sha256: str
    windows: int
    window: int
    scored: int


@dataclass(frozen=True)
class Divergence:
    """How far the answers are from those of the reference; KL in nats, from the reference.

    `perplexity` is the reference's own, `ppl_ratio` the evaluated model's over it.
    """

    reference: str
    perplexity: Estimate
    ppl_ratio: Estimate
    kl_mean: Estimate
    kl_p99: float
    top1_agree: Estimate
    max_abs_logit_diff: float
    mean_abs_logit_diff: float


@dataclass(frozen=True)
class TaskScore:
    """The share of a task's items that were answered rightly; `metric` is acc, acc_norm or exact_match."""

    task: str
    metric: str
    items: int
    score: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The quality of an artifact or a model; without times, so that the same evaluation is the same file.

    `manifest_sha256` ties it to a build, and is None for a model; `notes` say what a reader should know of
    the reference.
    """

    subject: str
    manifest_sha256: str | None
    tokens: Tokens | None = None
    perplexity: Estimate | None = None
    divergence: Divergence | None = None
    tasks: tuple[TaskScore, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
