import io
import json
import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.sample import HOST, PROFILE, write_artifact, write_bench
from tokc.cost import machine, records
from tokc.cost.prices import parse_price
from tokc.errors import TokcError
from tokc.report import collect, html, kernel_terminal, terminal, units
from tokc.report.model import Report

TODAY = date(2026, 11, 24)
VOID = {"meta"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path)


@pytest.fixture
def report(artifact: Path) -> Report:
    write_bench(artifact)
    return collect.collect(artifact, parse_price("0.20/h"), TODAY)


def test_measured_rates_give_the_cost(report: Report) -> None:
    cost = next(one for one in report.costs if one.batch == 1 and one.utilization == 1)
    assert cost.basis == "measured"
    assert cost.usd_per_mtok == pytest.approx(0.20 / 3600 / 205 * 1e6)
    assert cost.usd_per_ktok == pytest.approx(cost.usd_per_mtok / 1000)


def test_half_the_use_costs_twice_as_much(report: Report) -> None:
    cost = {one.utilization: one.usd_per_mtok for one in report.costs if one.batch == 8}
    assert cost[0.3] == pytest.approx(2 * cost[0.6])


def test_a_prediction_states_its_error(report: Report) -> None:
    figures = {figure.name: figure for figure in report.batches[0].figures}
    tpot = figures["time per output token"]
    moved = 8.62e7 + 2.36e7 * 160 / 1024 + 2.9e5 + 5.5e5 + 5.5e5 + 3e3
    assert tpot.predicted == pytest.approx(moved / HOST.read_bytes_per_s, rel=1e-6)
    assert tpot.error == pytest.approx(tpot.predicted / 0.00342 - 1)


def test_bytes_are_listed_largest_first(report: Report) -> None:
    assert [op.op for op in report.op_bytes][:2] == ["QuantLinear", "PagedAttention"]


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    records.write(path, report)
    assert records.read(Report, path) == report


def test_without_a_bench_rates_are_predicted(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda **_: HOST)
    report = collect.collect(artifact, parse_price("0.20/h"), TODAY)
    assert {cost.basis for cost in report.costs} == {"predicted"}
    assert all(figure.measured is None for batch in report.batches for figure in batch.figures)
    assert "predicted, not measured" in html.render(report)


def test_a_bench_of_another_build_is_refused(artifact: Path) -> None:
    write_bench(artifact)
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.1.0", "0.1.1"))
    with pytest.raises(TokcError, match="another build"):
        collect.collect(artifact, parse_price("0.20/h"), TODAY)


def test_html_is_well_formed_and_needs_nothing_else(report: Report) -> None:
    page = html.render(report)
    _Balanced().feed(page)
    assert not re.search(r"""src=|href="[^#]|@import|url\(|<script""", page)
    for op in report.op_bytes:
        assert op.op in page
    for row in report.ledger:
        assert row.pass_spec in page


def test_html_escapes_what_a_model_is_called(artifact: Path) -> None:
    manifest = artifact / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**value, "name": "<script>alert(1)</script>"}))
    write_bench(artifact)
    page = html.render(collect.collect(artifact, parse_price("0.20/h"), TODAY))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_terminal_shows_cost_speed_and_passes(report: Report) -> None:
    out = io.StringIO()
    terminal.show(report, Console(file=out, width=120))
    text = out.getvalue()
    for part in ("per 1M", "$0.271", "QuantLinear", "fuse-qkv", "roofline", "0.2 USD an hour"):
        assert part in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.42, "3.42"), (205.4, "205"), (1362.2, "1,362"), (6.37e-5, "0.0000637"), (99.96, "100.0")],
)
def test_figures_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert units.figures(value) == text


def test_times_take_the_unit_that_fits() -> None:
    assert [units.seconds(value) for value in (1.5, 0.094, 34e-6)] == ["1.50 s", "94.0 ms", "34.0 µs"]


def test_a_profile_is_a_section_of_the_page(report: Report) -> None:
    assert "<h2>Kernels</h2>" not in html.render(report)
    page = html.render(replace(report, profile=PROFILE))
    _Balanced().feed(page)
    assert not re.search(r"""src=|href="[^#]|@import|url\(|<script""", page)
    for part in (
        "<h2>Kernels</h2>",
        "QuantLinear 960x576 q4",
        "waiting at barriers",
        "outside the step",
        "<svg xmlns",
    ):
        assert part in page


def test_the_terminal_shows_a_profiles_kernels_and_parts() -> None:
    out = io.StringIO()
    Console(file=out, width=130).print(kernel_terminal.render(PROFILE))
    text = out.getvalue()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "PagedAttention 1 300 µs 6.00 µs 15.0% 3.80 MB 12.7 26% 11.0 M 36.7 20% f32 memory" in rows
    assert "outside the step 200 µs 10.0% engine less the step" in rows
    for part in ("47.9 GB/s", "least time by the roofs", "Prefill, a chunk of 512 tokens"):
        assert part in text


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Nothing stays open."""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_a_disturbed_measurement_says_so(report: Report) -> None:
    disturbed = replace(report, foreign_cpu=0.31)
    assert report.disturbed is None
    assert "Other programs took 31% of the cores" in html.render(disturbed)
