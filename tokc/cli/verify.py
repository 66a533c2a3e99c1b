"""`tokc verify`: is an artifact whole."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import print_json


def verify(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checked files as JSON.")] = False,
) -> None:
    """Check the hash of every file of an artifact; fails if one is missing, added or changed."""
    from tokc.runtime.artifact import verify as check

    files = check(artifact)
    if as_json:
        print_json({name: file._asdict() for name, file in sorted(files.items())})
    else:
        size = sum(file.bytes for file in files.values())
        typer.echo(f"{artifact}: {len(files)} files, {size} bytes, all as the manifest says")
