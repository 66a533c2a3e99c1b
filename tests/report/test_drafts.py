"""What drafts did is told with rates, cost and how often they held by place."""

from datetime import date
from pathlib import Path

import pytest

from tests.report.sample import write_artifact, write_bench
from tokc.cost import records
from tokc.cost.drafted import Drafted
from tokc.cost.measure import Bench
from tokc.cost.prices import parse_price
from tokc.cost.spread import Spread
from tokc.report import collect, drafts, html, sections
from tokc.report.model import Report

DRAFTED = Drafted(
    batch=4,
    prompt_tokens=128,
    output_tokens=64,
    tokens_per_s=Spread.of([300.0, 310.0, 320.0]),
    plain_tokens_per_s=Spread.of([155.0, 150.0, 160.0]),
    speedup=Spread.of([1.9, 2.0, 2.1]),
    drafts=100,
    verified_at=(100, 80),
    accepted_at=(75, 40),
)


def test_rates_cost_and_acceptance_stand_side_by_side() -> None:
    text = sections.markdown("", drafts.sections([DRAFTED], parse_price("0.36/h")))
    assert "| 4 | 310 | 155 | 2.00 | 1.90 to 2.10 | 64% | 2.15 | $0.323 | $0.645 |" in text
    assert "| 4 | 1 | 100 | 75% | ██████████████████ |" in text
    assert "| 4 | 2 | 80 | 50% | ████████████ |" in text


def test_a_draft_that_was_never_made_says_so() -> None:
    none = Drafted(1, 8, 8, *[Spread.of([1.0] * 3)] * 3, drafts=0, verified_at=(), accepted_at=())
    assert none.mean_acceptance_length == 1
    assert "no drafts" in sections.markdown("", drafts.sections([none], None))


def test_the_report_takes_them_from_the_bench(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path)
    path = write_bench(artifact)
    bench = records.read(Bench, path)
    records.write(path, Bench(**{**vars(bench), "drafted": (DRAFTED,)}))
    report = collect.collect(artifact, parse_price("0.20/h"), date(2026, 11, 25))
    assert report.drafted == (DRAFTED,)
    records.write(tmp_path / "report.json", report)
    assert records.read(Report, tmp_path / "report.json") == report


@pytest.mark.parametrize("field", ["verified_at", "accepted_at"])
def test_counts_are_read_back_as_they_were(field: str, tmp_path: Path) -> None:
    records.write(tmp_path / "drafted.json", DRAFTED)
    assert getattr(records.read(Drafted, tmp_path / "drafted.json"), field) == getattr(DRAFTED, field)


def test_the_page_shows_them(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path)
    path = write_bench(artifact)
    records.write(path, Bench(**{**vars(records.read(Bench, path)), "drafted": (DRAFTED,)}))
    page = html.render(collect.collect(artifact, parse_price("0.20/h"), date(2026, 11, 25)))
    assert "<h2>Speculation</h2>" in page
    assert "<h2>Drafted tokens by place</h2>" in page
