"""`tokc load-test`: what clients wait for under load, and what a token then costs."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.console import console, load_to_measure, needs_extra, print_json, progress
from tokc.cli.run import Speculative

if TYPE_CHECKING:
    from tokc.cost.serving.load import Arrival, Progress
    from tokc.cost.serving.record import Plan, ServingBench
    from tokc.cost.serving.workload import Workload


def load_test(
    artifact: Annotated[Path | None, typer.Argument(help="A NAME.tokc folder, or none with --url.")] = None,
    *,
    url: Annotated[str | None, typer.Option(help="A server that speaks OpenAI's completions.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model. [default: the first it lists]")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Its key.")] = None,
    workload: Annotated[str, typer.Option(help="chat, rag, code, agent, or a file of JSON lines.")] = "chat",
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="So many clients at once. [default: 1, 4, 16]")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.001, help="So many requests a second, at random.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a repetition.")] = 64,
    repetitions: Annotated[int, typer.Option(min=3, help="How often, after a warm-up.")] = 3,
    slo: Annotated[list[str] | None, typer.Option(help="As in ttft_p99=500ms or tpot_p95=40ms.")] = None,
    price: Annotated[str | None, typer.Option(help="As in 0.20/h, or a name of the price sheet.")] = None,
    grid_intensity: Annotated[float | None, typer.Option(help="gCO2e/kWh, for emissions.")] = None,
    pue: Annotated[float | None, typer.Option(help="Energy of the building over the machine's.")] = None,
    watts: Annotated[float | None, typer.Option(help="Of the machine, if nothing counts it.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    speculative: Speculative = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[default: NAME.load.json]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure latency percentiles, goodput and cost under a workload, in a closed or an open loop."""
    from tokc.cost import records
    from tokc.cost.energy import parse_carbon
    from tokc.cost.prices import DEFAULT_PRICE, parse_price
    from tokc.cost.serving.load import Effort
    from tokc.cost.serving.record import Plan
    from tokc.cost.serving.slo import parse_slo
    from tokc.cost.serving.workload import named_workload
    from tokc.quality.text import calibration_text
    from tokc.report import load_text

    if (artifact is None) == (url is None):
        raise typer.BadParameter("give an artifact, or --url", param_hint="ARTIFACT")
    if url is not None and speculative is not None:
        raise typer.BadParameter(
            "a server was told how to draft when it began", param_hint="--speculative-config"
        )
    work = named_workload(workload, calibration_text())
    effort = Effort(requests, repetitions, tuple(parse_slo(text) for text in slo or ()))
    carbon = parse_carbon(grid_intensity, pue, watts)
    plan, stated = Plan(work, _arrivals(concurrency, rate, work), effort), parse_price(price or DEFAULT_PRICE)
    with progress() as say:
        if artifact is not None:
            result = _in_process(artifact, threads, speculative, plan, say)
        else:
            assert url is not None, "one of the two was given"
            with needs_extra("load", "load-test --url"):
                result = asyncio.run(_server(url, model, api_key, plan, say))
    path = out or _default_out(artifact)
    records.write(path, result)
    if as_json:
        print_json(records.encode(result))
    else:
        console().print(load_text.terminal_of(result, stated, carbon))
        typer.echo(f"written to {path}", err=True)


def _arrivals(
    concurrency: list[int] | None, rate: list[float] | None, work: "Workload"
) -> tuple["Arrival", ...]:
    from tokc.cost.serving.load import Arrival

    given = (
        *(Arrival(concurrency=one) for one in concurrency or ()),
        *(Arrival(rate=one) for one in rate or ()),
    )
    default = (Arrival(),) if work.timed else tuple(Arrival(concurrency=one) for one in (1, 4, 16))
    return given or default


def _default_out(artifact: Path | None) -> Path:
    from tokc.report.collect import load_path

    return Path("server.load.json") if artifact is None else load_path(artifact)


def _in_process(
    artifact: Path, threads: int | None, speculative: Speculative, plan: "Plan", say: "Progress"
) -> "ServingBench":
    from tokc.cost.serving.endpoint import EngineEndpoint
    from tokc.cost.serving.record import Subject, measure_load
    from tokc.report.collect import manifest_sha256

    say(f"open {artifact}")
    with load_to_measure(artifact, threads=threads, speculative_config=speculative) as engine:
        subject = Subject(artifact.name, manifest_sha256(artifact))
        return asyncio.run(measure_load(EngineEndpoint(engine), subject, plan, say))


async def _server(
    url: str, model: str | None, key: str | None, plan: "Plan", say: "Progress"
) -> "ServingBench":
    from tokc.cost.serving.endpoint import http_endpoint
    from tokc.cost.serving.record import Subject, measure_load

    async with http_endpoint(url, model, key) as endpoint:
        return await measure_load(endpoint, Subject(endpoint.model, url=url), plan, say)
