"""`tokc build`: from a model's files to an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, needs_extra, print_json, progress

if TYPE_CHECKING:
    from tokc.compiler import Build, Request

Model = Annotated[Path, typer.Argument(help="A Hugging Face folder or a GGUF file.", show_default=False)]


def build(
    model: Model,
    *,
    target: Annotated[str, typer.Option(help="Where it will run; see `tokc targets`.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The artifact. [default: NAME.tokc]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="How weights are stored: int4, int8, f16 or f32.")] = "int4",
    kv_dtype: Annotated[str | None, typer.Option(help="How the cache is stored: f16, int8 or f32.")] = None,
    passes: Annotated[str | None, typer.Option(help="A pipeline of your own; see `tokc passes`.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context to make room for.")] = None,
    check: Annotated[bool, typer.Option(help="Compare the answers after every pass.")] = True,
    dump_ir: Annotated[Path | None, typer.Option(help="Write the program after each pass here.")] = None,
    print_after: Annotated[list[str] | None, typer.Option(help="Print the program after this pass.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop after this pass; write no artifact.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a model into an artifact that `tokc run` and `tokc serve` load."""
    with needs_extra("build", "build"):
        from tokc.compiler import Request, precision
    request = Request(
        model,
        target=target,
        precision=precision(dtype, kv_dtype),
        passes=passes,
        context=context,
        check=check,
        dump_ir=dump_ir,
        print_after=tuple(print_after or ()),
        stop_after=stop_after,
    )
    if dry_run:
        _estimate(request, as_json=as_json)
    else:
        _build(request, out, as_json=as_json)


def _build(request: "Request", out: Path | None, *, as_json: bool) -> None:
    from tokc.compiler import build as compile_model
    from tokc.compiler import default_out

    with progress() as say:
        result = compile_model(request, out or default_out(request.model), say)
    ledger = [entry.to_json() for entry in result.ledger]
    if as_json:
        path = None if result.path is None else str(result.path)
        print_json({"artifact": path, "pipeline": result.pipeline, "ledger": ledger})
        return
    _print_ledger(result)


def _print_ledger(result: "Build") -> None:
    from rich.table import Table

    from tokc.report import units

    table = Table("pass", box=None, pad_edge=False, header_style="dim")
    for column in ("nodes", "weights", "bytes/token", "KL, nats", "seconds"):
        table.add_column(column, justify="right")
    for entry in result.ledger:
        kl = entry.kl_mean
        table.add_row(
            entry.pass_spec,
            str(entry.nodes_after),
            units.scaled(entry.weight_bytes_after, "B"),
            units.change(entry.bytes_before, entry.bytes_after),
            "–" if kl is None else "exact" if entry.exact else f"{kl:.1e}",
            f"{entry.seconds:.2f}",
        )
    out = console()
    out.print(table)
    if result.path is None:
        out.print("stopped as asked; no artifact was written")
        return
    size = sum(file.stat().st_size for file in result.path.rglob("*") if file.is_file())
    out.print(f"\n[bold]{result.path}[/] {units.scaled(size, 'B')}; try: tokc run {result.path}")


def _estimate(request: "Request", *, as_json: bool) -> None:
    from dataclasses import asdict

    from tokc.compiler import estimate
    from tokc.report import units

    found = estimate(request)
    if as_json:
        print_json(asdict(found))
        return
    out = console()
    out.print(f"target    {found.target}")
    for index, spec in enumerate(found.pipeline.split(",")):
        out.print(f"{'pipeline' if index == 0 else '':9} {spec}")
    out.print(f"model     {units.scaled(found.model_bytes, 'B')} as it lies")
    out.print(f"weights   {units.scaled(found.weight_bytes, 'B')} in the artifact")
    out.print(f"cache     {units.scaled(found.kv_bytes_per_token, 'B')} a token")
    out.print(f"build     at most {units.scaled(found.build_peak_bytes, 'B')} of memory, predicted")
