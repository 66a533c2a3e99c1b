"""`tokc verify`: is an artifact whole; which pass of a model's build, or which of its kernels, is wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import needs_extra, print_json, progress

if TYPE_CHECKING:
    from tokc.bisect import Guilty


def verify(
    path: Annotated[
        Path, typer.Argument(help="A NAME.tokc folder; with --bisect also a model.", show_default=False)
    ],
    *,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first pass, then the first op, that is wrong.")
    ] = False,
    reference: Annotated[
        Path | None, typer.Option(help="The model that the artifact was built from, where it is not found.")
    ] = None,
    passes: Annotated[
        str | None, typer.Option(help="The pipeline to bisect. [default: the artifact's, or the CPU's]")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="A pass is wrong from this mean KL on, nats. [default: as it states]")
    ] = None,
    repro: Annotated[Path, typer.Option(help="Where the input of a wrong pass is written.")] = Path("repro"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was checked as JSON.")] = False,
) -> None:
    """Check the hash of every file of an artifact, or find what in a build is wrong."""
    if bisect:
        _bisect(path, reference, passes, max_kl, repro, as_json=as_json)
        return
    from tokc.runtime.artifact import verify as check

    files = check(path)
    if as_json:
        print_json({name: file._asdict() for name, file in sorted(files.items())})
    else:
        size = sum(file.bytes for file in files.values())
        typer.echo(f"{path}: {len(files)} files, {size} bytes, all as the manifest says")


def _bisect(
    path: Path,
    reference: Path | None,
    passes: str | None,
    max_kl: float | None,
    repro: Path,
    *,
    as_json: bool,
) -> None:
    """Run a build's passes one by one; an error names the first that is wrong.

    Raises: PassFailed naming pass, op and repro.
    """
    from tokc.cost import records

    with needs_extra("build", "verify --bisect"), progress() as say:
        from tokc.bisect import bisect
        from tokc.build_inputs import model_and_pipeline
        from tokc.importers import import_model

        model, pipeline = model_and_pipeline(path, reference, passes)
        say(f"import {model}")
        found = bisect(import_model(model), pipeline, repro, max_kl=max_kl, progress=say)
    if as_json:
        print_json(
            {"passes": len(pipeline.passes), "guilty": None if found is None else records.encode(found)}
        )
    if found is not None:
        raise _failed(found)
    if not as_json:
        typer.echo(
            f"{model}: {len(pipeline.passes)} passes, each as near to the program before it as it promises"
        )


def _failed(found: "Guilty") -> Exception:
    from tokc.errors import PassFailed

    where = f"pass {found.number} of {found.total}, {found.pass_spec}"
    if found.op is not None:
        named = f"{found.op.op} '{found.op.node}'" if found.op.node else found.op.op
        where += (
            f"; first at {named}, which makes '{found.op.value}': off by {found.op.error:.2g} of its norm"
        )
    return PassFailed(found.problem, where=where, hint=f"run it alone: {found.repro}")
