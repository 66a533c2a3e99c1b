"""What the commands share: where they print, how they show progress, and how they give JSON."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from tokc.errors import ArtifactRefused, TokcError, UnknownOption

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from tokc.runtime.engine import Engine

REPEATED = frozenset({"answers:", "features:", "item", "pack", "step", "window"})


def console(*, error: bool = False) -> "Console":
    """Return a rich console; where nobody watches, lines are wide enough for tables."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_json(value: object) -> None:
    """Print JSON for scripts."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that says on stderr what is done: one live line on a terminal, plain lines elsewhere.

    Messages of one word with a changing object (`pack lm_head`, `window 3 of 16`) would flood a log, so that
    elsewhere only the first of each such word is written.
    """
    if sys.stderr.isatty():
        with console(error=True).status("", spinner="dots") as status:
            yield status.update
        return
    start_s, seen = time.perf_counter(), set[str]()

    def line(message: str) -> None:
        word = message.partition(" ")[0]
        if word not in seen or word not in REPEATED:
            seen.add(word)
            typer.echo(f"[{time.perf_counter() - start_s:6.1f} s] {message}", err=True)

    yield line


@contextmanager
def needs_extra(extra: str, command: str) -> Iterator[None]:
    """Say how to get the extra if what it installs is missing.

    Raises: TokcError naming the package and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or "a package"
        if name.startswith("tokc"):
            raise
        raise TokcError(
            f"`tokc {command}` needs '{name}', which is not installed",
            hint=f"install the extra `{extra}` too: pip install 'WHEEL[{extra}]', or '.[{extra}]' in a clone",
        ) from error


def load_to_measure(artifact: "Path", **options: Any) -> "Engine":
    """Load an artifact that the user names to be measured here.

    Raises: UnknownOption if this machine cannot run it.
    """
    import tokc

    try:
        return tokc.load(artifact, **options)
    except ArtifactRefused as error:
        raise UnknownOption(error.problem, where=error.where or str(artifact), hint=error.hint) from error
