"""What a report says, as data: read by the terminal, HTML and JSON forms alike."""

from dataclasses import dataclass

from tokc.cost.devices import Host
from tokc.cost.drafted import Drafted
from tokc.cost.evaluation import Evaluation
from tokc.cost.measure import Point
from tokc.cost.prices import Price
from tokc.cost.profile import Profile
from tokc.cost.serving.record import ServingBench
from tokc.report.emissions import Emissions
from tokc.report.prediction import Prediction

SCHEMA_VERSION = 1
DISTURBED_SHARE = 0.05
UTILIZATIONS = (1.0, 0.6, 0.3, 0.1)


@dataclass(frozen=True)
class Identity:
    """Name what was measured; `manifest_sha256` stands for every byte of the artifact."""

    name: str
    manifest_sha256: str
    tokc_version: str
    family: str
    target: str
    pipeline: str
    context: int
    weight_bytes: int
    artifact_bytes: int
    kv_bytes_per_token: int
    kv_dtype: str
    licence: str | None = None


@dataclass(frozen=True)
class Figure:
    """A measured figure beside what the machine allows; `error` is predicted / measured - 1."""

    name: str
    unit: str
    measured: float | None
    predicted: float | None
    least: float | None = None
    greatest: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Batch:
    """The figures at one batch size; `bandwidth_share` of the predicted decode time is bound by bytes."""

    batch: int
    prompt_tokens: int
    output_tokens: int
    repetitions: int
    figures: tuple[Figure, ...]
    bandwidth_share: float


@dataclass(frozen=True)
class TokenCost:
    """What output tokens cost at a batch size; `basis` tells if the rate was measured or predicted."""

    batch: int
    utilization: float
    basis: str
    tokens_per_s: float
    usd_per_ktok: float
    usd_per_mtok: float


@dataclass(frozen=True)
class OpBytes:
    """The bytes that one kind of op moves for one decoded token."""

    op: str
    count: int
    bytes: float
    flops: float


@dataclass(frozen=True)
class LedgerRow:
    """What one pass did to the program: its size, its price and its answers.

    Times are not in the artifact, which is the same bytes however long it took to build. What compares
    answers is None where the pass changed nothing or the build did not check; `tokens_per_s` is measured, of
    one sequence, None where `tokc build --ledger full` did not or could not.
    """

    pass_spec: str
    changed: bool
    exact: bool
    nodes_before: int
    nodes_after: int
    weight_bytes_before: int
    weight_bytes_after: int
    bytes_before: float
    bytes_after: float
    kl_mean: float | None = None
    top1_agree: float | None = None
    max_abs_logit_diff: float | None = None
    mean_abs_logit_diff: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Checked:
    """How far one part of the code was checked, where the build did not run it."""

    part: str
    how: str


@dataclass(frozen=True)
class Report:
    """The cost of a token of one artifact on one machine.

    `load` is a load test of the same build, None without one.
    `measured_at` is None where nothing was measured; `op_bytes` are those of a token at `op_context` tokens;
    `foreign_cpu` is the share of the cores that other programs took during the measurement; `profile` is
    None where the bench timed no kernels. `verification` says, part by part, how far the code was checked
    where it was not run; `evaluation` is None where `tokc eval` did not measure this build. `prediction` is
    of this build over batch, context and chunk, on this machine or that where it will run; `emissions` is
    None where the grid's intensity was not stated.
    """

    identity: Identity
    host: Host
    price: Price
    price_stated: str
    batches: tuple[Batch, ...]
    costs: tuple[TokenCost, ...]
    op_context: int
    op_bytes: tuple[OpBytes, ...]
    ledger: tuple[LedgerRow, ...]
    measured_at: str | None = None
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    foreign_cpu: float = 0.0
    profile: Profile | None = None
    load: ServingBench | None = None
    verification: tuple[Checked, ...] = ()
    evaluation: Evaluation | None = None
    prediction: Prediction | None = None
    emissions: Emissions | None = None
    drafted: tuple[Drafted, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def disturbed(self) -> str | None:
        """Return what to say where others used the machine meanwhile, None where it was quiet."""
        if self.foreign_cpu < DISTURBED_SHARE:
            return None
        return f"Other programs took {self.foreign_cpu:.0%} of the cores meanwhile: measure again when quiet."


@dataclass(frozen=True)
class Inputs:
    """What a report is made of, beside the artifact's own files."""

    host: Host
    price: Price
    points: tuple[Point, ...] = ()
    measured_at: str | None = None
    load_s: float | None = None
    peak_rss_bytes: int | None = None
    foreign_cpu: float = 0.0
    profile: Profile | None = None
    drafted: tuple[Drafted, ...] = ()
