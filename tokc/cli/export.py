"""`tokc export`: a model's weights for other programs, or its steps for other compilers."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra, print_json, progress
from tokc.errors import UnknownOption

FORMATS = ("gguf", "hf", "onnx", "stablehlo")
FILES = ("gguf", "hf", "onnx")
ENDINGS = {"gguf": ".gguf", "hf": "-hf", "onnx": "-onnx", "stablehlo": ".stablehlo"}


def export(
    model: Annotated[
        Path,
        typer.Argument(help="An artifact for xla or tpu, or a model's folder or file.", show_default=False),
    ],
    *,
    to: Annotated[str, typer.Option(help=f"The format: {', '.join(FORMATS)}.")] = "stablehlo",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A file or folder. [default: NAME and the format's ending]"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="How a model's weights are stored: int2, int3, int4, int8, f16, f32.")
    ] = "int4",
    passes: Annotated[
        str | None, typer.Option(help="For models' files, a pipeline in place of the dtype's.")
    ] = None,
    lora: Annotated[
        list[Path] | None,
        typer.Option(help="For models' files, merge this adapter's folder; repeatable."),
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context of a model.")] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Whole contexts that the cache holds.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write a model as GGUF, Hugging Face or ONNX files, or its steps as StableHLO for other compilers."""
    if to not in FORMATS:
        raise UnknownOption(f"unknown format '{to}'; choose from {', '.join(FORMATS)}")
    out = out or Path(f"{model.resolve().name.removesuffix('.tokc').removesuffix('.gguf')}{ENDINGS[to]}")
    if to in FILES:
        files = _files(model, to, dtype, passes, tuple(lora or ()), out)
    else:
        files = _steps(model, dtype, context, contexts, out)
    if as_json:
        print_json([str(path) for path in files])
    elif files == [out]:
        typer.echo(out)
    else:
        typer.echo(f"{out}: {', '.join(path.name for path in files)}")


def _files(
    model: Path, to: str, dtype: str, passes: str | None, lora: tuple[Path, ...], out: Path
) -> list[Path]:
    """Write the weights and texts in the format of another program."""
    with needs_extra("build", "export"):
        from tokc.exporters.files import Export
    with progress() as say:
        return Export(model, to, dtype, passes, lora).write(out, say)


def _steps(model: Path, dtype: str, context: int | None, contexts: int, folder: Path) -> list[Path]:
    """Write the steps of a model, or of an artifact for XLA."""
    with needs_extra("build", "export"):
        from tokc.compiler import Request, build, precision
        from tokc.targets.tpu.export import export_stablehlo
    if (model / "manifest.json").is_file():
        return list(export_stablehlo(model, folder, contexts=contexts))
    with tempfile.TemporaryDirectory(prefix="tokc-export-") as name, progress() as say:
        request = Request(model, target="xla:cpu", precision=precision(dtype, None), context=context)
        made = build(request, Path(name) / "model.tokc", say)
        return list(export_stablehlo(made.artifact, folder, contexts=contexts))
