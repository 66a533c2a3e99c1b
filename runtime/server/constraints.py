"""What an answer is held to: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`."""

import json
from collections.abc import Iterator

from tokc.runtime.grammar import ANY_OBJECT, Constraint, json_schema
from tokc.runtime.server.errors import Json, invalid

GUIDED = {f"guided_{kind}": kind for kind in ("json", "regex", "choice", "grammar")}


def constraint_of(given: Json) -> Constraint | None:
    """Return what the checked parameters hold the answer to, None where they do not.

    Raises: ApiError if they ask for two things at once, or for none where one is needed.
    """
    wanted = list(_wanted(given))
    if len(wanted) > 1:
        names = " and ".join(f"'{name}'" for name, _ in wanted)
        raise invalid(f"{names} are given; an answer is held to one of them", wanted[1][0])
    return wanted[0][1] if wanted else None


def _wanted(given: Json) -> Iterator[tuple[str, Constraint]]:
    form = given.get("response_format", {"type": "text"})
    if form["type"] == "json_object":
        yield "response_format", ANY_OBJECT
    elif form["type"] == "json_schema":
        if form.get("json_schema") is None:
            where = "response_format.json_schema"
            raise invalid(f"'{where}' is missing", where, "missing_required_parameter")
        yield "response_format", json_schema(form["json_schema"]["schema"])
    for name, value in given.get("structured_outputs", {}).items():
        if value is not None and value is not False:
            yield f"structured_outputs.{name}", _constraint(name, value)
    for name, kind in GUIDED.items():
        if name in given:
            yield name, _constraint(kind, given[name])


def _constraint(kind: str, value: str | list[str] | Json | bool) -> Constraint:  # noqa: FBT001 - a flag of JSON
    if kind == "json_object":
        return ANY_OBJECT
    if kind == "json":
        return Constraint("json_schema", value) if isinstance(value, str) else json_schema(value)  # type: ignore[arg-type]
    if kind == "choice":
        return Constraint("choice", json.dumps(value))
    assert isinstance(value, str), "regular expressions and grammars are texts"
    return Constraint("regex", value) if kind == "regex" else Constraint("grammar", value)
