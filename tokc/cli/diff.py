"""`tokc diff`: what changed between two artifacts."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli import check
from tokc.cli.check import Inconclusive
from tokc.cli.console import console, load_to_measure, print_json, progress

if TYPE_CHECKING:
    from tokc.cost.measure import Load
    from tokc.cost.paired import PairedFigure

CHANGE_HELP = "A limit on a change, such as 'size<=+2%' or 'tpot@1<=+5%'; the measured ones imply --measure."


def diff(
    before: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    *,
    measure: Annotated[
        bool, typer.Option("--measure", help="Bench both on this machine, in turns, and compare.")
    ] = False,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Requests at once, of --measure. [default: 1, 8]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="How often each is run, in turns.")] = 6,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    gate: Annotated[list[str] | None, typer.Option(help=CHANGE_HELP)] = None,
    inconclusive: Annotated[Inconclusive, typer.Option(help="What a gate that noise hides does.")] = "fail",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the difference as JSON.")] = False,
) -> None:
    """Compare two artifacts: configuration, passes, tensors, kernels, size, quality, and speed."""
    from dataclasses import replace

    from tokc.cost import records
    from tokc.cost.gates import parse_change
    from tokc.cost.measure import Load
    from tokc.report import diff_text
    from tokc.report.change_figures import judge_changes
    from tokc.report.diff import diff as compare

    gates = tuple(map(parse_change, gate or ()))
    found = compare(before, after)
    if measure or any(one.measured for one in gates):
        load = Load(prompt_tokens, output_tokens, rounds)
        found = replace(found, paired=_measure((before, after), tuple(batch or (1, 8)), load, threads))
    judged = judge_changes(gates, found)
    if as_json:
        print_json({**records.encode(found), "gates": [records.encode(one) for one in judged]})
    elif markdown:
        typer.echo(diff_text.markdown(found), nl=False)
    else:
        console().print(diff_text.terminal(found))
    if judged and not as_json:
        check.show(judged, after, None, markdown=markdown, as_json=False)
    check.hold(judged, inconclusive_fails=inconclusive == "fail")


def _measure(
    paths: tuple[Path, Path], batches: tuple[int, ...], load: "Load", threads: int | None
) -> "tuple[PairedFigure, ...]":
    from tokc.cost.paired import measure_paired

    with progress() as say:
        say(f"load {paths[0]} and {paths[1]}")
        loaded = partial(load_to_measure, threads=threads)
        with loaded(paths[0]) as first, loaded(paths[1]) as second:
            return measure_paired((first, second), batches, load, say)
