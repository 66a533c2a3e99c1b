"""The JSON Schema (draft 2020-12) of report.json, from the dataclasses that a report is made of.

A field with a default came after the first version of the schema: what was written before lacks it, as
`tokc.cost.records` reads it, too. A field that goes, or changes its meaning, needs a new version.
"""

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from tokc.report.model import SCHEMA_VERSION, Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = "schema_version"
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def report_schema() -> dict[str, object]:
    """Return the schema of what `tokc report --json` prints."""
    definitions: dict[str, dict[str, object]] = {}
    _reference(Report, definitions, {})
    return {
        "$schema": DIALECT,
        "title": f"The report of tokc, version {SCHEMA_VERSION}",
        "$ref": f"#/$defs/{Report.__name__}",
        "$defs": dict(sorted(definitions.items())),
    }


def _reference(
    kind: Any, definitions: dict[str, dict[str, object]], kinds: dict[str, Any]
) -> dict[str, object]:
    """Return a reference to a dataclass, which is defined with all that it holds."""
    name = kind.__name__
    if name not in kinds:
        kinds[name] = kind
        definitions[name] = _record(kind, definitions, kinds)
    assert kinds[name] is kind, f"two dataclasses of a report are called '{name}'"
    return {"$ref": f"#/$defs/{name}"}


def _record(kind: Any, definitions: dict[str, dict[str, object]], kinds: dict[str, Any]) -> dict[str, object]:
    hints = get_type_hints(kind)
    properties = {one.name: _schema(hints[one.name], definitions, kinds) for one in fields(kind)}
    if VERSION in properties:
        properties[VERSION] = {"const": next(one.default for one in fields(kind) if one.name == VERSION)}
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": properties,
        "required": [one.name for one in fields(kind) if one.default is MISSING or one.name == VERSION],
    }


def _schema(kind: Any, definitions: dict[str, dict[str, object]], kinds: dict[str, Any]) -> dict[str, object]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        return {"anyOf": [_schema(one, definitions, kinds) for one in arguments]}
    if kind is types.NoneType:
        return {"type": "null"}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions, kinds)}
    if is_dataclass(kind):
        return _reference(kind, definitions, kinds)
    return {"type": NAMES[kind]}
