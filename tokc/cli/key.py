"""`tokc key`: a new API key for `tokc serve`."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra, print_json


def key(
    name: Annotated[
        str, typer.Argument(help="Whose it is; keys of one name share budgets.", show_default=False)
    ],
    *,
    append_to: Annotated[
        Path | None, typer.Option(help="File of keys to append its line to, instead of printing it.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Unlimited if not given.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Of prompts and answers; unlimited if not given.")
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-100, max=100, help="The best its requests may have; lower is earlier.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print key and line as JSON.")] = False,
) -> None:
    """Make an API key. It is shown once; the file of keys has only a hash of it."""
    with needs_extra("serve", "key"):
        from tokc.runtime.server.keys import append_key, make_key
    secret, made = make_key(
        name, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, priority=priority
    )
    if append_to is not None:
        append_key(append_to, made)
    if as_json:
        print_json({"key": secret, "line": made.line()})
        return
    typer.echo(secret)
    if append_to is None:
        typer.echo(f"the line for --api-keys:\n{made.line()}", err=True)
