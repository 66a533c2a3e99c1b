"""`tokc tune-kernels`: the schedule of the kernels that is the fastest on this machine."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import needs_extra, print_json, progress

if TYPE_CHECKING:
    from tokc.targets.cpu.tuning import Stage

THREADS_HELP = "How many threads the artifacts will run. [default: as many as there are cores]"


def tune_kernels(
    *,
    target: Annotated[str, typer.Option(help="This machine, or an instruction set that it runs.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how the linear kernels run fastest here and keep it for `tokc build`; answers stay the same.

    Takes about half a minute of an idle machine. What is found is kept in the user's cache after each choice,
    so that an interrupt keeps the choices that were made.
    """
    with needs_extra("build", "tune-kernels"):
        from tokc.targets.cpu.tuning import isa_to_tune, search

    isa = isa_to_tune(target)
    stages: list[Stage] = []
    with progress() as say, suppress(KeyboardInterrupt):
        for stage in search(isa, threads=threads, progress=say):
            stage.tuned.write()
            stages.append(stage)
    _show(stages, as_json=as_json)


def _show(stages: "list[Stage]", *, as_json: bool) -> None:
    if as_json:
        path = str(stages[-1].tuned.path) if stages else None
        print_json({"file": path, "stages": [stage.to_json() for stage in stages]})
        return
    for stage in stages:
        chosen = getattr(stage.tuned.schedule, stage.choice)
        ratios = ", ".join(f"{value}: {ratio:.3f}" for value, ratio in stage.ratios)
        typer.echo(f"{stage.choice} {chosen}  (time over the default's: {ratios})")
    if stages:
        typer.echo(f"kept in {stages[-1].tuned.path}; `tokc build` uses it")
    else:
        typer.echo("interrupted before the first choice; nothing was kept", err=True)
