"""The JSON Schema of report.json: what a report is validated against, and what it refuses."""

import json
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.report.sample import PROFILE, write_artifact, write_bench
from tokc.cost import records
from tokc.cost.prices import parse_price
from tokc.report import collect
from tokc.report.model import Report
from tokc.report.schema import report_schema

SCHEMA = Path("docs/reference/report.schema.json")


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """Return what validates against the file that is published."""
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    artifact = write_artifact(tmp_path)
    write_bench(artifact)
    report = collect.collect(artifact, parse_price("0.20/h"), date(2026, 11, 24))
    path = tmp_path / "report.json"
    records.write(path, replace(report, profile=PROFILE))
    return json.loads(path.read_text())


def problems(validator: Draft202012Validator, value: object) -> list[str]:
    return [f"{one.json_path}: {one.message}" for one in validator.iter_errors(value)]


def test_a_report_is_valid(validator: Draft202012Validator, written: Any) -> None:
    assert problems(validator, written) == []


def test_every_field_of_every_record_is_described() -> None:
    defined: Any = report_schema()["$defs"]
    assert set(defined["Report"]["properties"]) == {one.name for one in fields(Report)}
    assert all(one["description"] for one in defined.values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("costs", 0, "usd_per_mtok"), "0.27"),
        (("identity", "licence"), 7),
        (("batches", 0, "figures"), None),
        (("profile", "steps", 0, "kernels", 0, "work", "flops"), None),
    ],
)
def test_a_value_of_another_type_or_version_is_refused(
    validator: Draft202012Validator, written: Any, path: tuple[str | int, ...], value: object
) -> None:
    at = written
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert problems(validator, written)


@pytest.mark.parametrize("name", ["identity", "costs", "schema_version"])
def test_a_report_without_what_it_is_for_is_refused(
    validator: Draft202012Validator, written: Any, name: str
) -> None:
    del written[name]
    assert problems(validator, written)


def test_a_report_from_before_a_field_came_is_valid(validator: Draft202012Validator, written: Any) -> None:
    del written["drafted"], written["emissions"]
    assert problems(validator, written) == []
