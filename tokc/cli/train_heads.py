"""`tokc train-heads`: heads that draft tokens for a model, trained on what it answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, needs_extra, print_json, progress

if TYPE_CHECKING:
    from tokc.heads.card import Report


Model = Annotated[
    Path, typer.Argument(help="A model, or an artifact that exposes its features.", show_default=False)
]
HEADS = Path("heads.safetensors")


def train_heads(
    model: Model,
    *,
    kind: Annotated[str, typer.Option(help="eagle or medusa.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The heads; their card lies beside.")] = HEADS,
    text: Annotated[Path | None, typer.Option(help="Train on this text, not on the model's answers.")] = None,
    self_distill: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens that the model answers to train on.")
    ] = 1_000_000,
    draft_vocabulary: Annotated[int, typer.Option(min=1, help="Tokens that a draft can name.")] = 8192,
    epochs: Annotated[int, typer.Option(min=1, help="How often the text is read, at most.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same heads.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Keeps answers, features and checkpoints, to go on from. [default: OUT.training]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a draft on the answers of the model that will be served, and say how often it holds.

    Interrupted, and begun again, it goes on and ends with the same heads.
    """
    with needs_extra("torch", "train-heads"):
        from tokc.heads.train import Request, named_kind
        from tokc.heads.train import train_heads as train

    request = Request(
        model=model,
        kind=named_kind(kind),
        out=out,
        work=work or out.with_suffix(".training"),
        text=text,
        distilled=self_distill,
        draft_vocabulary=draft_vocabulary,
        epochs=epochs,
        seed=seed,
        threads=threads,
    )
    with progress() as say:
        report = train(request, say)
    print_json(report.to_json()) if as_json else _print(report)
    typer.echo(f"written to {out}; build: tokc build MODEL --speculate {kind} --heads {out}", err=True)


def _print(report: "Report") -> None:
    from rich.table import Table

    table = Table(f"held-out {report.plan.kind}", box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens a step", justify="right")
    for place in range(len(report.acceptance.held)):
        table.add_column(f"{place + 1}.", justify="right", header_style="dim")
    for task, found in [*report.by_task.items(), ("all", report.acceptance)]:
        shares = (f"{100 * share:.0f} %" for share in found.by_position)
        table.add_row(task, f"{found.mean_length:.2f}", *shares)
    console().print(table)
    console().print("how often each drafted token holds where those before it do; measured", style="dim")
