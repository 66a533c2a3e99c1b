"""A load test in the report: shown where it is of this build, and nowhere else."""

from pathlib import Path

import pytest

from tests.report.sample import write_artifact
from tokc.cost import records
from tokc.cost.prices import parse_price, today
from tokc.cost.serving.endpoint import Busy, Heard, State
from tokc.cost.serving.load import Arrival, Outcome
from tokc.cost.serving.record import ServingBench, point_of
from tokc.cost.serving.slo import parse_slo
from tokc.report.collect import collect, load_path, manifest_sha256
from tokc.report.html import render


def outcome(scale: float) -> Outcome:
    found = Outcome(seconds=2.0, busy=Busy(0.5, 1.5), states=[State(2, 1, 0.25)])
    for index in range(4):
        times = tuple(scale * (0.1 + 0.02 * step) for step in range(10 + index))
        found.note(0.0, Heard(times, 20, len(times), 5), [parse_slo("ttft_p99=90ms")])
    return found


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path)


def write_load(artifact: Path, sha256: str) -> None:
    slos = (parse_slo("ttft_p99=90ms"), parse_slo("tpot_p50=40ms"))
    outcomes = [outcome(scale) for scale in (1.0, 1.1, 1.2)]
    load = ServingBench(
        artifact=artifact.name,
        manifest_sha256=sha256,
        url=None,
        measured_at="2026-11-25T10:00:00+00:00",
        workload="chat",
        workload_summary="short questions",
        workload_sha256="0" * 64,
        slos=tuple(slo.text for slo in slos),
        repetitions=3,
        points=(
            point_of(Arrival(concurrency=4), outcomes, slos),
            point_of(Arrival(rate=2.5), outcomes, slos),
        ),
    )
    records.write(load_path(artifact), load)


def test_it_is_in_the_page_with_its_verdicts_and_costs(artifact: Path) -> None:
    write_load(artifact, manifest_sha256(artifact))
    page = render(collect(artifact, parse_price("0.20/h"), today()))
    for text in ("Under load", "4 at once", "2.5/s", "objectives not kept", "110 ms over", "1M input"):
        assert text in page


def test_that_of_another_build_is_not(artifact: Path) -> None:
    write_load(artifact, "1" * 64)
    report = collect(artifact, parse_price("0.20/h"), today())
    assert report.load is None
    assert "Under load" not in render(report)
