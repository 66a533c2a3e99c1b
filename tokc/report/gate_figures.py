"""Finds the figures that gates bound: in the artifact's own files, and in what was measured of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokc.cost import records
from tokc.cost.gates import METRICS, Found, Gate, Judged, judge
from tokc.cost.intervals import Interval
from tokc.cost.measure import Bench, Point
from tokc.cost.prices import Price, usd_per_token
from tokc.cost.serving.record import ServingPoint
from tokc.cost.spread import Spread
from tokc.errors import TokcError, UnknownOption
from tokc.report.collect import bench_path, load_of, load_path, manifest_sha256, other_build
from tokc.report.model import DISTURBED_SHARE
from tokc.report.quality import evaluation_of, gate_figures
from tokc.runtime.artifact import Artifact, folder_bytes

TOKENS = 1e6
POINTS: Mapping[str, Callable[[Point], Spread]] = {
    "ttft": lambda point: point.ttft_s,
    "tpot": lambda point: point.tpot_s,
    "tokens_per_s": lambda point: point.tokens_per_s,
    "prefill_tokens_per_s": lambda point: point.prefill_tokens_per_s,
}
MEASURED_BY = {
    "bench": "measure it: tokc bench {artifact}",
    "load": "measure it: tokc load-test {artifact}",
    "ledger": "measure it: tokc eval {artifact} --reference MODEL; "
    "of few tokens a checked build has it: tokc build MODEL --check",
}


@dataclass(frozen=True)
class Pricing:
    """What turns a rate into a cost; `price` None where nobody stated one."""

    price: Price | None = None
    utilization: float = 1.0


@dataclass(frozen=True)
class Figures:
    """All that is known of an artifact; `bench` is None where it was not measured.

    `evaluated` is what `tokc eval` found of many tokens, `ledger` what the build's check found of few.
    """

    artifact: Path
    counted: Mapping[str, float]
    evaluated: Mapping[str, Found]
    ledger: Mapping[str, float]
    bench: Bench | None
    pricing: Pricing

    @property
    def disturbed(self) -> str | None:
        """Return what to say where others used the machine during the bench, None where it was quiet."""
        share = 0.0 if self.bench is None else self.bench.foreign_cpu
        if share < DISTURBED_SHARE:
            return None
        return f"other programs took {share:.0%} of the cores during the bench: measure again when quiet"

    def find(self, gate: Gate) -> tuple[Found, ...]:
        """Return the figure that a gate bounds: one, or one for each batch size that was measured.

        Raises: TokcError naming the command that measures it; UnknownOption if a cost has no price.
        """
        source = METRICS[gate.metric].source
        if source == "load":
            return self._under_load(gate)
        if source == "bench":
            return self._measured(gate)
        if gate.metric in self.evaluated:
            return (self.evaluated[gate.metric],)
        known = self.counted if source == "artifact" else self.ledger
        if gate.metric not in known:
            raise self._missing(gate, "neither an evaluation of this build nor its ledger holds it")
        return (Found(known[gate.metric]),)

    def _measured(self, gate: Gate) -> tuple[Found, ...]:
        if self.bench is None:
            raise self._missing(gate, f"there is no bench of this build at '{bench_path(self.artifact)}'")
        once = {"peak_rss": float(self.bench.peak_rss_bytes), "load_s": self.bench.load_s}
        if gate.metric in once:
            return (Found(once[gate.metric], repetitions=1),)
        points = [point for point in self.bench.points if gate.batch in {None, point.batch}]
        if not points:
            batches = ", ".join(str(point.batch) for point in self.bench.points)
            raise self._missing(
                gate, f"the bench has batch {batches}, not {gate.batch}", f" --batch {gate.batch}"
            )
        return tuple(self._at(gate, point) for point in points)

    def _under_load(self, gate: Gate) -> tuple[Found, ...]:
        load = load_of(self.artifact)
        if load is None:
            raise self._missing(gate, f"there is no load test of this build at '{load_path(self.artifact)}'")
        points = [point for point in load.points if gate.batch in {None, point.concurrency}]
        if not points:
            loads = ", ".join(point.arrival for point in load.points)
            option = f" --concurrency {gate.batch}"
            raise self._missing(gate, f"the load test has {loads}, not {gate.batch} at once", option)
        return tuple(self._loaded(gate, point) for point in points)

    def _loaded(self, gate: Gate, point: ServingPoint) -> Found:
        metric, _, percentile = gate.metric.partition("_p")
        if percentile:
            spread = getattr(point, metric).percentile(int(percentile))
        elif point.goodput_per_s is None:
            raise self._missing(gate, "the load test had no objectives", " --slo ttft_p99=500ms")
        else:
            spread = point.goodput_per_s
        return Found(spread.mean or 0.0, spread.interval(), point.concurrency or 0, spread.repetitions)

    def _at(self, gate: Gate, point: Point) -> Found:
        if gate.metric in POINTS:
            spread = POINTS[gate.metric](point)
            moments = spread.moments()
            figure = spread.median if moments is None else moments[0]
            return Found(figure, spread.interval(), point.batch, spread.repetitions)
        if self.pricing.price is None:
            raise UnknownOption(
                f"gate '{gate.text}' needs a price",
                hint='what an hour of it costs: --price 0.20/h, or price = "0.20/h" in the gates file',
            )
        rate = self._at(Gate("tokens_per_s", gate.compare, 0.0, point.batch, gate.text), point)
        assert rate.interval is not None, "a rate is measured several times"
        ends = (self._usd(rate.interval.high), self._usd(rate.interval.low))
        return Found(self._usd(rate.figure), Interval(*ends), point.batch, rate.repetitions)

    def _usd(self, tokens_per_s: float) -> float:
        """Return USD for a million tokens; without end where the interval reaches no tokens at all."""
        assert self.pricing.price is not None, "asked before"
        if tokens_per_s <= 0:
            return float("inf")
        return usd_per_token(self.pricing.price, tokens_per_s, self.pricing.utilization) * TOKENS

    def _missing(self, gate: Gate, why: str, options: str = "") -> TokcError:
        command = MEASURED_BY[METRICS[gate.metric].source].format(artifact=self.artifact)
        return TokcError(
            f"'{gate.metric}' was not measured: {why}",
            where=f"gate '{gate.text}'",
            hint=f"{command}{options}",
        )


def figures_of(path: Path, pricing: Pricing, bench: Path | None = None) -> Figures:
    """Read an artifact's figures; `bench` None takes what `tokc bench` wrote of this build, if it did.

    Raises: TokcError if a file is damaged, or the bench that was named is of another build.
    """
    manifest = Artifact.open(path, verify=False).manifest
    counted = {
        "size": float(folder_bytes(path)),
        "weight_bytes": float(manifest.weight_bytes),
        "kv_bytes_per_token": manifest.kv.bytes_per_token,
    }
    evaluated = gate_figures(evaluation_of(path))
    return Figures(path, counted, evaluated, final_quality(path), bench_of(path, bench), pricing)


def judge_all(gates: tuple[Gate, ...], figures: Figures) -> tuple[Judged, ...]:
    """Return the verdict of every gate, at every batch size that it bounds.

    Raises: TokcError if a gate's metric was not measured.
    """
    return tuple(judge(gate, found) for gate in gates for found in figures.find(gate))


def final_quality(path: Path) -> dict[str, float]:
    """Return the figures of the last program against the imported one, none where nothing was compared.

    Raises: TokcError if the ledger is not JSON.
    """
    file = path / "quality.json"
    try:
        value = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise TokcError(f"'{file}' is not JSON: {error}") from error
    final = value.get("final") or {}
    return {name: float(figure) for name, figure in final.items() if isinstance(figure, int | float)}


def bench_of(artifact: Path, named: Path | None = None) -> Bench | None:
    """Return the bench of this very build, None where there is none beside the artifact.

    Raises: TokcError if a bench that was named is missing, damaged or of another build.
    """
    path = named or bench_path(artifact)
    if named is None and not path.exists():
        return None
    bench = records.read(Bench, path)
    if bench.manifest_sha256 == manifest_sha256(artifact):
        return bench
    if named is None:
        return None
    raise other_build(bench, path, artifact)
