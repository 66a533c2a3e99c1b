"""The program `tokc`: its commands, and what becomes of errors."""

import sys
from typing import Annotated

import typer

import tokc
from tokc.cli import (
    bench,
    build,
    check,
    compare,
    deploy,
    diff,
    doctor,
    eval,  # noqa: A004 - the command's name
    export,
    inspect,
    key,
    load_test,
    opt,
    passes,
    report,
    run,
    serve,
    sign,
    targets,
    train_heads,
    tune,
    tune_kernels,
    verify,
    verify_signature,
)
from tokc.errors import GateNotMet, TokcError, UnknownOption

FAILED = 1
EXIT_CODES: dict[type[TokcError], int] = {UnknownOption: 2, GateNotMet: 3}

app = typer.Typer(
    name="tokc",
    help="Compile a language model for a machine, run it there, and tell what a token costs.",
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 3 a stated limit was not met.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(build.build)
app.command()(tune.tune)
app.command()(tune_kernels.tune_kernels)
app.command()(train_heads.train_heads)
app.command()(run.run)
app.command()(serve.serve)
app.command()(deploy.deploy)
app.command()(key.key)
app.command()(bench.bench)
app.command()(load_test.load_test)
app.command()(eval.eval)
app.command()(report.report)
app.command()(check.check)
app.command()(diff.diff)
app.command()(compare.compare)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(verify.verify)
app.command()(sign.sign)
app.command()(verify_signature.verify_signature)
app.command()(passes.passes)
app.command()(targets.targets)
app.command()(doctor.doctor)
app.command()(opt.opt)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"tokc {tokc.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line; an error that tokc raises on purpose is printed, not traced."""
    try:
        app()
    except TokcError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one place that reports
        sys.exit(EXIT_CODES.get(type(error), FAILED))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(FAILED)
