"""Frozen dataclasses to JSON and back, with errors that name the field."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tokc.errors import TokcError

_T = TypeVar("_T")


def encode(record: Any) -> dict[str, object]:
    """Return a record as what `json.dumps` takes."""
    return asdict(record)


def write(path: Path, record: Any) -> None:
    """Write a record as JSON, keys sorted; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(encode(record), indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read(kind: type[_T], path: Path) -> _T:
    """Read a record from a JSON file.

    Raises: TokcError if it is missing, no JSON, or a field is missing or of another type.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise TokcError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise TokcError(f"'{path}' is not JSON: {error}") from error
    return decode(kind, value, where=str(path))


def decode(kind: type[_T], value: object, *, where: str) -> _T:
    """Return the record that `value` holds; fields that `kind` does not know are passed over.

    Raises: TokcError naming the field that is missing or of another type.
    """
    result: _T = _decode(kind, value, where, "")
    return result


def _decode(kind: Any, value: Any, where: str, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _decode(kind, value, where, path)
    if is_dataclass(kind):
        return _record(kind, value, where, path)
    if origin is tuple:
        _require(isinstance(value, list), "a list", where, path)
        return tuple(_decode(arguments[0], item, where, f"{path}[{i}]") for i, item in enumerate(value))
    if kind is float:
        _require(isinstance(value, int | float) and not isinstance(value, bool), "a number", where, path)
        return float(value)
    _require(isinstance(value, kind), kind.__name__, where, path)
    return value


def _record(kind: Any, value: Any, where: str, path: str) -> Any:
    _require(isinstance(value, Mapping), "an object", where, path)
    hints, given = get_type_hints(kind), {}
    for one in fields(kind):
        if one.name in value:
            given[one.name] = _decode(hints[one.name], value[one.name], where, f"{path}.{one.name}")
        else:
            _require(one.default is not MISSING, "given", where, f"{path}.{one.name}")
    return kind(**given)


def _require(holds: bool, expected: str, where: str, path: str) -> None:  # noqa: FBT001 - the condition it is about
    if not holds:
        raise TokcError(
            f"'{path.lstrip('.') or 'the file'}' is not {expected}",
            where=where,
            hint="the file is damaged or of another version of tokc",
        )
