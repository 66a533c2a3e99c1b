"""`tokc verify`: is an artifact whole; which of its kernels, or which pass of its build, is wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, needs_extra, print_json, progress
from tokc.errors import PassFailed, VerifyFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokc.bisect import Guilty
    from tokc.op_verification import OpError


def verify(
    path: Annotated[
        Path, typer.Argument(help="A NAME.tokc folder; with --bisect also a model.", show_default=False)
    ],
    *,
    ops: Annotated[
        bool, typer.Option("--ops", help="Hold each kernel against its op, run in onnxruntime.")
    ] = False,
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
    """Check the hash of every file of an artifact, then its kernels if asked, or bisect its build."""
    if bisect and ops:
        raise typer.BadParameter("--ops and --bisect are two questions: ask one at a time")
    if bisect:
        _bisect(path, reference, passes, max_kl, repro, as_json=as_json)
        return
    from tokc.runtime.artifact import verify as check

    files = check(path)
    if ops:
        _ops(path, reference, as_json=as_json)
    elif as_json:
        print_json({name: file._asdict() for name, file in sorted(files.items())})
    else:
        size = sum(file.bytes for file in files.values())
        typer.echo(f"{path}: {len(files)} files, {size} bytes, all as the manifest says")


def _ops(path: Path, reference: Path | None, *, as_json: bool) -> None:
    """Print by kind of op how far its kernels are from the IR.

    Raises: VerifyFailed naming the first launch that is wrong.
    """
    from tokc.cost import records

    with needs_extra("build", "verify --ops"), progress() as say:
        from tokc.build_inputs import model_and_pipeline
        from tokc.importers import import_model
        from tokc.op_verification import verify_ops
        from tokc.runtime.artifact import Artifact

        model, pipeline = model_and_pipeline(path, reference, None)
        say(f"import {model}")
        context = Artifact.open(path, verify=False).manifest.limits.context
        found = verify_ops(path, import_model(model, context), pipeline, say)
    if as_json:
        print_json([{**records.encode(one), "wrong": one.wrong} for one in found])
    else:
        _print_ops(found)
    wrong = [one for one in found if one.wrong]
    if wrong:
        first, share = wrong[0], f"{len(wrong)} of {len(found)} values"
        raise VerifyFailed(
            f"{share} are off by more than rounding, the first, '{first.value}', by {first.error:.2g}",
            where=f"launch {first.launch}, {first.op}, kernel '{first.kernel}'",
            hint="if tokc verify --bisect finds nothing, the IR is right: it is the kernel, or its weights",
        )


def _print_ops(found: "Sequence[OpError]") -> None:
    from rich.table import Table

    table = Table("op", box=None, pad_edge=False, header_style="dim")
    for name in ("values", "mean error", "largest", "most that rounding explains"):
        table.add_column(name, justify="right")
    for op in dict.fromkeys(one.op for one in found):
        some = [one for one in found if one.op == op]
        mean, most = sum(one.error for one in some) / len(some), max(one.error for one in some)
        table.add_row(op, str(len(some)), f"{mean:.1e}", f"{most:.1e}", f"{max(one.limit for one in some):g}")
    console().print(table)


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


def _failed(found: "Guilty") -> PassFailed:
    where = f"pass {found.number} of {found.total}, {found.pass_spec}"
    if found.op is not None:
        named = f"{found.op.op} '{found.op.node}'" if found.op.node else found.op.op
        where += (
            f"; first at {named}, which makes '{found.op.value}': off by {found.op.error:.2g} of its norm"
        )
    return PassFailed(found.problem, where=where, hint=f"run it alone: {found.repro}")
