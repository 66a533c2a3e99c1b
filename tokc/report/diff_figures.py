"""The figures of two artifacts side by side: counted, predicted, of the ledgers, and of their benches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokc.cost.intervals import ratio_of_means
from tokc.cost.measure import Bench, Point
from tokc.cost.roofline import StepWork, read_work
from tokc.cost.spread import Spread
from tokc.report.gate_figures import POINTS, final_quality
from tokc.runtime.artifact import Artifact, folder_bytes

UNITS = {"ttft": "s", "tpot": "s", "tokens_per_s": "tokens/s", "prefill_tokens_per_s": "tokens/s"}


@dataclass(frozen=True)
class Amount:
    """A figure on both sides; `ratio` is after / before, its 95 % interval from `low` to `high` if measured.

    `conclusive` is None for what was counted, False where noise alone explains the difference.
    """

    what: str
    unit: str
    before: float | None
    after: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    conclusive: bool | None = None

    @classmethod
    def of(cls, what: str, unit: str, before: float | None, after: float | None) -> "Amount":
        """Return a figure that has no noise."""
        ratio = after / before if before and after is not None else None
        return cls(what, unit, before, after, ratio)

    @property
    def differs(self) -> bool:
        """Return whether the figures are not the same."""
        return self.before != self.after


def counted(before: Artifact, after: Artifact) -> tuple[Amount, ...]:
    """Return sizes: files, weights, a token's place in the cache."""
    sides = (before, after)
    return (
        Amount.of("size", "B", *(folder_bytes(one.path) for one in sides)),
        Amount.of("weight_bytes", "B", *(one.manifest.weight_bytes for one in sides)),
        Amount.of("kv_bytes_per_token", "B", *(one.manifest.kv.bytes_per_token for one in sides)),
    )


def predicted(before: Path, after: Path) -> tuple[Amount, ...]:
    """Return bytes and FLOPs of a decode and a prefill step, whole and by op where they differ."""
    left, right = read_work(before), read_work(after)
    return (*_steps("decode", left.decode, right.decode), *_steps("prefill", left.prefill, right.prefill))


def _steps(name: str, before: StepWork, after: StepWork) -> Iterator[Amount]:
    yield Amount.of(f"{name} bytes", "B", before.bytes, after.bytes)
    yield Amount.of(f"{name} FLOPs", "FLOP", before.flops, after.flops)
    left, right = ({op.op: op.bytes for op in side.ops} for side in (before, after))
    for op in sorted(left.keys() | right.keys()):
        amount = Amount.of(f"{name} bytes of {op}", "B", left.get(op), right.get(op))
        if amount.differs:
            yield amount


def ledger(before: Path, after: Path) -> tuple[Amount, ...]:
    """Return how far each artifact is from the model that it was imported from."""
    left, right = final_quality(before), final_quality(after)
    return tuple(
        Amount.of(name, "", left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())
    )


def measured(before: Bench | None, after: Bench | None) -> tuple[tuple[Amount, ...] | None, str | None]:
    """Return the figures of two benches that were run apart, and what makes them hard to compare."""
    if before is None or after is None:
        missing = " and ".join(side for side, one in (("A", before), ("B", after)) if one is None)
        return None, f"no bench of {missing} lies beside it: tokc bench, or tokc diff --measure"
    note = None
    if before.host.cpu != after.host.cpu or before.host.cores != after.host.cores:
        note = (
            f"measured on different machines: {before.host.cpu} ({before.host.cores} cores), "
            f"{after.host.cpu} ({after.host.cores} cores)"
        )
    shape = {(point.batch, point.prompt_tokens, point.output_tokens): point for point in after.points}
    amounts = [
        amount
        for point in before.points
        if (other := shape.get((point.batch, point.prompt_tokens, point.output_tokens)))
        for amount in _points(point, other)
    ]
    if not amounts:
        return None, "the benches have no batch and length in common: measure both alike"
    amounts.append(Amount.of("peak_rss", "B", before.peak_rss_bytes, after.peak_rss_bytes))
    amounts.append(Amount.of("load_s", "s", before.load_s, after.load_s))
    return tuple(amounts), note


def _points(before: Point, after: Point) -> Iterator[Amount]:
    for name, figure in POINTS.items():
        yield _of_spreads(f"{name}@{before.batch}", UNITS[name], figure(before), figure(after))


def _of_spreads(what: str, unit: str, before: Spread, after: Spread) -> Amount:
    left, right = before.moments(), after.moments()
    if left is None or right is None or left[0] <= 0 or right[0] <= 0:
        return Amount.of(what, unit, before.median, after.median)
    ratio = ratio_of_means(left, right, (before.repetitions, after.repetitions))
    return Amount(what, unit, left[0], right[0], ratio.value, ratio.low, ratio.high, ratio.conclusive)
