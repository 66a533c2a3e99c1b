"""Checks JSON against the part of JSON Schema that the parameters use.

The same tables are the API's OpenAPI document, so that what is documented is what is checked. Schemas are
ours, not a client's.
"""

import math
from typing import Any

from tokc.runtime.server.errors import Json, invalid

NAMES = {
    dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number",
    type(None): "null",
}  # fmt: skip
SHOWN = 40


def check(value: object, schema: Json, where: str) -> None:
    """Check a value.

    Raises: ApiError naming the place.
    """
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], where)
        return
    wanted = schema.get("type")
    if wanted is not None and not _is(value, wanted):
        code = "invalid_type"
        raise invalid(f"'{where}' is {_shown(value)}, expected {_article(schema)}", where, code)
    if "enum" in schema and value not in schema["enum"]:
        accepted = ", ".join(f"'{item}'" for item in schema["enum"])
        raise invalid(f"'{where}' is {_shown(value)}, expected {accepted}", where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(value, schema, where)
    elif isinstance(value, str):
        _check_size(len(value), schema, where, "Length", "characters")
    elif isinstance(value, list):
        _check_size(len(value), schema, where, "Items", "items")
        for index, item in enumerate(value if "items" in schema else ()):
            check(item, schema["items"], f"{where}[{index}]")
    elif isinstance(value, dict):
        _check_object(value, schema, where)


def kind_of(value: object) -> str:
    """Return JSON's name of a value's type."""
    return NAMES[type(value)]


def _is(value: object, wanted: str) -> bool:
    kind = kind_of(value)
    return kind == wanted or (wanted == "number" and kind == "integer")


def _check_any(value: object, schemas: list[Json], where: str) -> None:
    fitting = [schema for schema in schemas if _is(value, schema["type"])]
    if not fitting:
        names = " or ".join(_article(schema) for schema in schemas)
        raise invalid(f"'{where}' is {_shown(value)}, expected {names}", where, "invalid_type")
    if len(fitting) == 1:
        check(value, fitting[0], where)
    elif not any(_holds(value, schema, where) for schema in fitting):
        names = " or ".join(_article(schema) for schema in schemas)
        raise invalid(f"'{where}' is {_shown(value)}, expected {names}", where)


def _holds(value: object, schema: Json, where: str) -> bool:
    from tokc.errors import TokcError

    try:
        check(value, schema, where)
    except TokcError:
        return False
    return True


def _check_number(value: float, schema: Json, where: str) -> None:
    low, high, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    fits = (
        (isinstance(value, int) or math.isfinite(value))
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
    if not fits:
        bounds = [
            *([f"at least {low}"] if low is not None else []),
            *([f"above {above}"] if above is not None else []),
            *([f"at most {high}"] if high is not None else []),
        ]
        raise invalid(f"'{where}' is {_shown(value)}, expected {' and '.join(bounds) or 'a number'}", where)


def _check_size(size: int, schema: Json, where: str, name: str, unit: str) -> None:
    low, high = schema.get(f"min{name}", 0), schema.get(f"max{name}")
    if size < low or (high is not None and size > high):
        bound = f"at least {low}" if size < low else f"at most {high}"
        raise invalid(f"'{where}' has {size} {unit}, expected {bound}", where)


def _check_object(value: dict[str, Any], schema: Json, where: str) -> None:
    for name in schema.get("required", ()):
        if value.get(name) is None:
            place = f"{where}.{name}"
            raise invalid(f"'{place}' is missing", place, "missing_required_parameter")
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            if item is not None:
                check(item, properties[name], f"{where}.{name}")
        elif others is False:
            place = f"{where}.{name}"
            raise invalid(f"unknown parameter: '{place}'", place, "unknown_parameter")
        elif isinstance(others, dict):
            check(item, others, f"{where}.{name}")


def _article(schema: Json) -> str:
    name = str(schema["type"])
    text = f"an {name}" if name[0] in "aio" else f"a {name}"
    return f"{text} of {schema['items'].get('type', 'item')}s" if "items" in schema else text


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"an {kind_of(value)}"
    text = str(value)
    return f"{kind_of(value)} '{text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'}'"
