"""`tokc eval`: what an artifact's or a model's answers are worth."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, needs_extra, print_json, progress

if TYPE_CHECKING:
    from tokc.cost.evaluation import Evaluation
    from tokc.evaluation import Request


def eval(  # noqa: A001 - the command's name
    model: Annotated[
        Path,
        typer.Argument(help="A NAME.tokc folder, or a model as `tokc build` takes it.", show_default=False),
    ],
    *,
    reference: Annotated[
        Path | None,
        typer.Option(help="Compare with this model or artifact. [default: what the artifact was built from]"),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text of your own. [default: the one of tokc]")] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens to read, in windows of 512.")] = 8192,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks for lm-eval, by commas: tokc (all that come with it), names, folders."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="[default: NAME.eval.json beside an artifact]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure perplexity on a text and, beside a reference, KL, agreement and the ratio of perplexities."""
    from tokc.cost import records
    from tokc.evaluation import Request, is_artifact
    from tokc.report.quality import evaluation_path

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tokens == 0 and not names:
        raise typer.BadParameter("with --tokens 0 there is nothing to do but --tasks")
    found = _measure(Request(model, reference, text, tokens, threads), names)
    path = out or (evaluation_path(model) if is_artifact(model) else None)
    if path is not None:
        records.write(path, found)
    if as_json:
        print_json(records.encode(found))
    else:
        _print(found)
    if path is not None:
        typer.echo(f"written to {path}", err=True)


def _measure(request: "Request", tasks: list[str]) -> "Evaluation":
    from tokc.evaluation import evaluate
    from tokc.task_evaluation import score_tasks

    with progress() as say:
        with needs_extra("build", "eval"):
            found = evaluate(request, say)
        if not tasks:
            return found
        with needs_extra("eval", "eval --tasks"):
            return replace(found, tasks=score_tasks(request.model, tasks, request.threads, say))


def _print(found: "Evaluation") -> None:
    from rich.table import Table

    from tokc.report import quality

    table = Table(found.subject, box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("95 % interval", justify="right", header_style="dim")
    for row in quality.rows(found):
        table.add_row(*row)
    console().print(table)
    console().print(quality.method(found), style="dim")
