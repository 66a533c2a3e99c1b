"""Write the pages of this folder from the code: `python -m docs.reference.make`.

Considered: sphinx-click and mkdocstrings, which make sites; these pages any viewer of Markdown shows.
"""

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import grimp
import typer
from typer.core import TyperCommand, TyperGroup

from tokc.cli.app import app
from tokc.cost.gates import METRICS
from tokc.ir.ops import OPS
from tokc.passes.table import PASSES
from tokc.report.schema import report_schema
from tokc.runtime.server import parameters

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def page(title: str, lines: Iterable[str]) -> str:
    """Return a page that says where it comes from."""
    return (
        "\n".join(
            (f"# {title}", "", "Written by `make reference` from the code; change it there.", "", *lines)
        )
        + "\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table; an empty one is nothing."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def sentences(text: str | None) -> str:
    """Return a docstring as paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "")))


def commands() -> str:
    """Return the page of the program's commands."""
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    lines = []
    for name, command in program.commands.items():
        assert isinstance(command, TyperCommand)
        takes = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join(
            one.name.upper() if one.required else f"[{one.name.upper()}]" for one in takes if one.name
        )
        lines += [
            f"## tokc {name}",
            "",
            f"    tokc {name} {usage} [options]",
            "",
            sentences(command.help),
            "",
        ]
        lines += table(("argument", "what it is"), ((one.name, told(one)) for one in takes)) + [""] * bool(
            takes
        )
        lines += table(
            ("option", "default", "what it does"),
            ((spelled(one), default(one), told(one)) for one in options if one.name != "help"),
        )
        lines.append("")
    return page("Commands", lines[:-1])


def told(parameter: Any) -> str:
    """Return what a parameter's help says."""
    return " ".join((parameter.help or "").split())


def spelled(option: Any) -> str:
    """Return an option's names."""
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def default(option: Any) -> str:
    """Return an option's default; what is off or unset is empty."""
    if option.required:
        return "required"
    return "" if option.default in (None, False, ()) or callable(option.default) else f"`{option.default}`"


def passes() -> str:
    """Return the page of the passes."""
    lines = []
    for kind in sorted(PASSES, key=lambda kind: kind.name):
        options = [one for one in fields(kind) if one.init]  # type: ignore[arg-type]
        exact = "exact up to the order of float operations" if kind.exact else "rounds"
        lines += [f"## {kind.name}", "", f"*{exact}*", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        lines += table(
            ("option", "default"),
            (
                (f"`{one.name}`", "required" if one.default is MISSING else f"`{one.default}`")
                for one in options
            ),
        ) + [""] * bool(options)
    return page("Passes", lines[:-1])


def ops() -> str:
    """Return the page of the ops of the domain `tokc`."""
    rows = (
        (
            f"`{op.name}`",
            listed(op.inputs),
            listed(op.outputs),
            listed(f"{key}={value!r}" for key, value in op.attributes.items()),
        )
        for op in OPS.values()
    )
    return page(
        "Ops of the domain `tokc`",
        (
            "What each computes is an ONNX function (`tokc/ir/bodies.py`); `?` marks what may be left out.",
            "",
            *table(("op", "inputs", "outputs", "attributes and defaults"), rows),
        ),
    )


def listed(names: Iterable[str]) -> str:
    """Return names in code font."""
    return ", ".join(f"`{name}`" for name in names)


def figures() -> str:
    """Return the page of what gates and tuning can bound."""
    rows = ((f"`{one.name}`", one.kind, one.source, one.summary) for one in METRICS.values())
    return page("Figures that a gate can bound", table(("figure", "unit", "from", "what it is"), rows))


def requests() -> str:
    """Return the page of the parameters of requests."""
    lines: list[str] = []
    for path, accepted, refused in (
        ("/v1/chat/completions", parameters.CHAT, parameters.CHAT_REFUSED),
        ("/v1/completions", parameters.COMPLETION, parameters.COMPLETION_REFUSED),
    ):
        lines += [f"## {path}", ""]
        lines += table(
            ("parameter", "type", "what it does"),
            ((f"`{name}`", kind(rule), rule.get("description", "")) for name, rule in accepted.items()),
        )
        lines += ["", "Refused, unless sent with a value that asks for nothing:", ""]
        lines += [
            *table(("parameter", "why"), ((f"`{name}`", one.reason) for name, one in refused.items())),
            "",
        ]
    return page("Parameters of requests", lines[:-1])


def kind(rule: Mapping[str, Any]) -> str:
    """Return the type of a parameter and its bounds."""
    if "anyOf" in rule:
        return " or ".join(dict.fromkeys(kind(one) for one in rule["anyOf"]))
    low, high = rule.get("minimum", rule.get("exclusiveMinimum")), rule.get("maximum")
    return str(rule.get("type", "any")) + (
        f" {low} to {high}" if low is not None and high is not None else ""
    )


def imports() -> str:
    """Return the page of who imports whom, as a diagram of the layers that `lint-imports` holds."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [re.findall(r"[a-z_]+", layer) for layer in settings["contracts"][0]["layers"]]
    graph = grimp.build_graph("tokc", exclude_type_checking_imports=True)
    lines = ["```mermaid", "flowchart TD"]
    for place, layer in enumerate(layers):
        lines += [f"  subgraph L{place}[ ]", *(f"    {name}" for name in layer), "  end"]
    folders = [name for layer in layers for name in layer]
    reach = {
        one: {
            other
            for other in folders
            if one != other
            and graph.direct_import_exists(importer=f"tokc.{one}", imported=f"tokc.{other}", as_packages=True)
        }
        for one in folders
    }
    for one, reached in reach.items():
        implied = set().union(*(reach[other] for other in reached))
        lines += [f"  {one} --> {other}" for other in sorted(reached - implied)]
    contracts = [f"- {contract['name']}" for contract in settings["contracts"]]
    return page(
        "Who imports whom",
        [
            "Contracts that `make check` holds:",
            "",
            *contracts,
            "",
            "An arrow is an import; one that longer ways imply is left out.",
            "",
            *lines,
            "```",
        ],
    )


def report() -> str:
    """Return the JSON Schema of report.json."""
    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands,
    "passes.md": passes,
    "ops.md": ops,
    "figures.md": figures,
    "requests.md": requests,
    "imports.md": imports,
    "report.schema.json": report,
}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (FOLDER / name).write_text(write())
