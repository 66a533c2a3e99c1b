"""Predictions and the waterfall in the page: charts where there is something to draw, figures that add up."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.report.sample import HOST, write_artifact, write_bench
from tokc.cost import records
from tokc.cost.grid import Grid, GridCell
from tokc.cost.prices import parse_price
from tokc.report import html, terminal, units, waterfall_html
from tokc.report.collect import collect, manifest_sha256
from tokc.report.model import Report
from tokc.report.prediction import grid_path


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_artifact(tmp_path)
    write_bench(path)
    return path


def report(artifact: Path) -> Report:
    return collect(artifact, parse_price("0.20/h"), date(2026, 11, 25))


def test_cost_by_context_is_drawn_and_listed(artifact: Path) -> None:
    found = report(artifact)
    assert found.prediction is not None
    page = html.render(found)
    assert "Cost against context" in page
    assert "Predicted against measured" not in page
    assert "calibrate this machine" in page
    costs = [one.usd_per_mtok or 0 for one in found.prediction.decoding if one.batch == 1]
    assert costs == sorted(costs)


def test_a_grid_of_this_build_is_held_against_predictions(artifact: Path) -> None:
    cells = tuple(GridCell(batch, context, 4e-3, 5e-3, 9) for batch in (1, 8) for context in (128, 1024))
    grid = Grid(artifact.name, manifest_sha256(artifact), "2026-11-25T10:00:00+00:00", 2, cells)
    records.write(grid_path(artifact), grid)
    found = report(artifact)
    page = html.render(found)
    assert found.prediction is not None
    assert found.prediction.comparison is not None
    mean = found.prediction.comparison.mean_error
    assert f"Error over 4 cells: {mean:.1%} on average" in page
    assert "<polygon" in page
    assert terminal.render(found)
    records.write(grid_path(artifact), replace(grid, manifest_sha256="0" * 64))
    assert "<polygon" not in html.render(report(artifact))


def test_the_waterfall_goes_from_the_imported_model_to_the_artifact(artifact: Path) -> None:
    found = report(artifact)
    text = waterfall_html.render(found.ledger, HOST.read_bytes_per_s, found.price)
    changed = [row for row in found.ledger if row.changed and row.bytes_before != row.bytes_after]
    assert text.count('class="bar"') == len(changed) + 2
    assert text.index("imported model") < text.index("quantize-weights") < text.index("artifact")
    usd = 0.20 / 3600 * changed[0].bytes_before / HOST.read_bytes_per_s * 1e6
    assert units.usd(usd) in text


def test_without_a_change_there_is_no_waterfall(artifact: Path) -> None:
    idle = [replace(row, changed=False) for row in report(artifact).ledger]
    assert waterfall_html.render(idle, HOST.read_bytes_per_s, parse_price("0.20/h")) == ""
