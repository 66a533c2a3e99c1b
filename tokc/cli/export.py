"""`tokc export`: a model's steps for other compilers."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra, print_json, progress
from tokc.errors import UnknownOption

FORMATS = ("stablehlo",)


def export(
    model: Annotated[
        Path,
        typer.Argument(help="An artifact for xla or tpu, or a model's folder or file.", show_default=False),
    ],
    *,
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")] = "stablehlo",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder. [default: NAME.stablehlo]")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How a model's weights are stored: int2, int3, int4, int8, f16, f32.")
    ] = "int4",
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context of a model.")] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Whole contexts that the cache holds.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write a model's steps as StableHLO, which compilers for other accelerators take."""
    if to not in FORMATS:
        raise UnknownOption(f"unknown format '{to}'; choose from {', '.join(FORMATS)}")
    with needs_extra("build", "export"):
        from tokc.compiler import Request, build, precision
        from tokc.targets.tpu.export import export_stablehlo
    folder = out or Path(f"{model.resolve().name.removesuffix('.tokc').removesuffix('.gguf')}.stablehlo")
    if (model / "manifest.json").is_file():
        files = export_stablehlo(model, folder, contexts=contexts)
    else:
        with tempfile.TemporaryDirectory(prefix="tokc-export-") as name, progress() as say:
            request = Request(model, target="xla:cpu", precision=precision(dtype, None), context=context)
            made = build(request, Path(name) / "model.tokc", say)
            files = export_stablehlo(made.artifact, folder, contexts=contexts)
    if as_json:
        print_json([str(path) for path in files])
    else:
        typer.echo(f"{folder}: {', '.join(path.name for path in files)}")
