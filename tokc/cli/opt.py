"""`tokc opt`: a program in, passes over it, a program out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra


def opt(
    program: Annotated[str, typer.Argument(help="A program as text, a .onnx dump, or - for text on stdin.")],
    *,
    passes: Annotated[str, typer.Option(help="The pipeline to run.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a dump here instead of text.")
    ] = None,
) -> None:
    """Run passes over a dumped program and print the result; the way to look into one pass."""
    with needs_extra("build", "opt"):
        from tokc.instruments import VerifyEach
        from tokc.ir import text
        from tokc.pipeline import Pipeline
    pipeline = Pipeline.parse(passes)
    if program.endswith(".onnx"):
        before = text.load_dump(Path(program))
    else:
        before = text.parse(sys.stdin.read() if program == "-" else _read(Path(program)))
    after = pipeline.run(before, [VerifyEach()])
    if out is None:
        typer.echo(text.render(after), nl=False)
    else:
        typer.echo(text.dump(after, out.with_suffix("")))


def _read(path: Path) -> str:
    from tokc.errors import TokcError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokcError(f"cannot read the program '{path}': {error}") from error
