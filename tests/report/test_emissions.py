"""Energy and emissions in the report: counted where something counts, else predicted from a power."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.report.sample import write_artifact, write_bench
from tests.report.test_load_html import write_load
from tokc.cost.energy import Carbon
from tokc.cost.prices import parse_price
from tokc.report import emissions
from tokc.report.collect import collect, load_of, manifest_sha256
from tokc.report.emissions import COUNTER, NO_POWER, Rate, emissions_of

CARBON = Carbon(400.0, 1.2)


def test_a_counter_comes_before_a_stated_power(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path)
    write_load(artifact, manifest_sha256(artifact))
    load = load_of(artifact)
    assert load is not None
    points = tuple(replace(point, joules_per_output_token=0.05) for point in load.points)
    found = emissions_of(replace(CARBON, watts=50.0), replace(load, points=points), (), None)
    assert {one.basis for one in found.rows} == {COUNTER}
    assert found.rows[0].g_per_mtok == pytest.approx(CARBON.g_per_mtok(0.05))


def test_a_power_over_a_rate_is_labelled_predicted() -> None:
    found = emissions_of(CARBON, None, (Rate("batch 8", 400.0),), 100.0)
    (row,) = found.rows
    assert row.joules_per_token == pytest.approx(0.25)
    assert row.basis == "predicted from 100 W"


def test_without_either_the_report_says_what_is_missing() -> None:
    found = emissions_of(CARBON, None, (Rate("batch 8", 400.0),), None)
    assert not found.rows
    assert NO_POWER in (emissions.section(found).note or "")


def test_the_report_has_them_when_the_intensity_is_stated(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path)
    write_bench(artifact)
    price, today = parse_price("0.20/h"), date(2026, 11, 25)
    assert collect(artifact, price, today).emissions is None
    found = collect(artifact, price, today, carbon=replace(CARBON, watts=60.0)).emissions
    assert found is not None
    assert {one.load for one in found.rows} == {"batch 1", "batch 8"}
