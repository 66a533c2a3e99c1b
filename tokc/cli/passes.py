"""`tokc passes`: what a pipeline can hold."""

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import needs_extra, print_json

if TYPE_CHECKING:
    from tokc.passes.base import Pass


def passes(
    name: Annotated[str | None, typer.Argument(help="Describe this one in full.", show_default=False)] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print names and options as JSON.")] = False,
) -> None:
    """List the passes and their options."""
    with needs_extra("build", "passes"):
        from tokc.pipeline import Pipeline, named_passes
    known = named_passes()
    if name is not None:
        kind = type(Pipeline.parse(name).passes[0])
        known = {kind.name: kind}
    if as_json:
        print_json(
            {key: {"exact": kind.exact, "options": _options(kind)} for key, kind in sorted(known.items())}
        )
        return
    for key, kind in sorted(known.items()):
        options = " ".join(f"{option}={value}" for option, value in _options(kind).items())
        typer.echo(f"{key}{{{options}}}" if options else key)
        lines = (kind.__doc__ or "").strip().splitlines()
        for line in lines if name is not None else lines[:1]:
            typer.echo(f"    {line.strip()}")


def _options(kind: "type[Pass]") -> dict[str, object]:
    return {
        field.name: None if field.default is MISSING else field.default
        for field in fields(kind)  # type: ignore[arg-type]
        if field.init
    }
