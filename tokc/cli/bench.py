"""`tokc bench`: measure an artifact on this machine."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, load_to_measure, print_json, progress
from tokc.cli.run import Speculative

if TYPE_CHECKING:
    from tokc.cost.measure import Bench, Load
    from tokc.cost.profiling import Steps
    from tokc.runtime.engine import Engine


def bench(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once. [default: 1, 8]")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    repetitions: Annotated[int, typer.Option(min=3, help="How often, after a warm-up.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    speculative: Speculative = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time every kernel, too.")] = False,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens before a profiled decode step. [default: as measured]")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the profiled prefill step. [default: 512]")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Decode over batch and context, to judge predictions by; no bench.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Which accelerator this is, a row of the device sheet.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the profiled kernels under their roofs.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[default: NAME.bench.json]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure time to first token, time per token and tokens per second in a closed loop."""
    if grid:
        _grid(artifact, repetitions, threads, out, as_json=as_json)
        return
    from tokc.cost import records
    from tokc.cost.measure import Load
    from tokc.cost.profiling import Steps
    from tokc.report.collect import bench_path

    if not profile and (context or chunk or svg):
        raise typer.BadParameter("--context, --chunk and --svg are of a profile: add --profile")
    batches, load = tuple(batch or (1, 8)), Load(prompt_tokens, output_tokens, repetitions)
    steps = Steps(batches, context or prompt_tokens + output_tokens // 2, chunk)
    opened = partial(load_to_measure, artifact, threads=threads, speculative_config=speculative)
    result = _measure(artifact, opened, batches, load, steps if profile else None, device)
    path = out or bench_path(artifact)
    records.write(path, result)
    _draw(result, svg)
    if as_json:
        print_json(records.encode(result))
        return
    _print(result)
    typer.echo(f"written to {path}; price it: tokc report {artifact} --bench {path}", err=True)


def _measure(
    artifact: Path,
    opened: "Callable[[], Engine]",
    batches: tuple[int, ...],
    load: "Load",
    steps: "Steps | None",
    device: str | None,
) -> "Bench":
    from tokc.cost import profiling
    from tokc.cost.devices import CpuWatch, probe
    from tokc.cost.measure import Bench, measure, peak_rss_bytes
    from tokc.cost.peaks import peaks_of
    from tokc.cost.sheet import sheet_for
    from tokc.cost.speculation import measure as drafting
    from tokc.quality.text import evaluation_text
    from tokc.report.collect import manifest_sha256
    from tokc.runtime.artifact import Artifact

    manifest = Artifact.open(artifact, verify=False).manifest
    sheet = sheet_for(f"{manifest.target.kind}:{manifest.target.device}", device)
    with progress() as say:
        say(f"load {artifact}")
        start_s = time.perf_counter()
        with opened() as engine:
            load_s = time.perf_counter() - start_s
            watch = CpuWatch()
            points = measure(engine, batches, load, say)
            drafted = (
                () if engine.speculation is None else drafting(engine, evaluation_text(), batches, load, say)
            )
            peak = peak_rss_bytes()
            say("probe this machine's memory and arithmetic")
            weights = max(file.bytes for file in manifest.files.values())
            peaks = peaks_of(artifact, engine.executor)
            features = manifest.target.features
            host = sheet.host() if sheet else probe(engine.executor, features, weights, peaks)
            profile = None if steps is None else profiling.profile(engine, host, steps, say)
            foreign = watch.foreign_share()
    return Bench(
        artifact=artifact.name,
        manifest_sha256=manifest_sha256(artifact),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        load_s=load_s,
        peak_rss_bytes=peak,
        points=points,
        foreign_cpu=foreign,
        profile=profile,
        drafted=drafted,
    )


def _grid(artifact: Path, rounds: int, threads: int | None, out: Path | None, *, as_json: bool) -> None:
    from tokc.cost import records
    from tokc.cost.grid import measure_grid
    from tokc.report import prediction_text
    from tokc.report.collect import manifest_sha256
    from tokc.report.prediction import compared, grid_path

    with progress() as say:
        found = measure_grid(artifact, manifest_sha256(artifact), rounds, threads, say)
    path = out or grid_path(artifact)
    records.write(path, found)
    if as_json:
        print_json(records.encode(found))
        return
    console().print(prediction_text.grid_terminal(compared(artifact, found)))
    typer.echo(f"written to {path}", err=True)


def _draw(result: "Bench", svg: Path | None) -> None:
    from tokc.report.roofline_svg import render

    if svg is not None and result.profile is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(render(result.profile), encoding="utf-8")


def _print(result: "Bench") -> None:
    from rich.table import Table

    from tokc.report import units

    table = Table("batch", box=None, pad_edge=False, header_style="dim")
    for column in ("first token", "per token", "output tokens/s", "least to greatest", "prefill tokens/s"):
        table.add_column(column, justify="right")
    for point in result.points:
        rate = point.tokens_per_s
        table.add_row(
            str(point.batch),
            units.seconds(point.ttft_s.median),
            units.seconds(point.tpot_s.median),
            units.figures(rate.median),
            f"{units.figures(rate.least)} to {units.figures(rate.greatest)}",
            units.figures(point.prefill_tokens_per_s.median),
        )
    console().print(table)
    if result.drafted:
        from tokc.report import drafts, sections

        console().print("", sections.terminal("", drafts.sections(result.drafted, None)), sep="\n")
    if result.profile is not None:
        from tokc.report import kernel_terminal

        console().print("", kernel_terminal.render(result.profile), sep="\n")
