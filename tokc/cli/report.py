"""`tokc report`: what a token costs."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import console, print_json


def report(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    price: Annotated[
        str | None, typer.Option(help="Of the machine: '0.20/h' in USD, or a row of the price sheet.")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(help="What `tokc bench` wrote. [default: NAME.bench.json]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where it will run, a row of the device sheet, if not here.")
    ] = None,
    grid_intensity: Annotated[float | None, typer.Option(help="gCO2e/kWh, for emissions.")] = None,
    pue: Annotated[float | None, typer.Option(help="Energy of the building over the machine's.")] = None,
    watts: Annotated[float | None, typer.Option(help="Of the machine, if nothing counts it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML file.")] = None,
    json_out: Annotated[Path | None, typer.Option(help="Write the report as a JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    prices: Annotated[bool, typer.Option("--prices", help="Print the price sheet and end.")] = False,
) -> None:
    """Show cost, speed, bytes and passes; without a bench, speed is predicted."""
    from tokc.cost import records
    from tokc.cost.energy import parse_carbon
    from tokc.cost.prices import parse_price, today
    from tokc.report import terminal
    from tokc.report.collect import collect
    from tokc.report.html import render

    if prices:
        _print_prices()
        return
    asked = None if price is None else parse_price(price)
    found = collect(artifact, asked, today(), bench, device, parse_carbon(grid_intensity, pue, watts))
    if json_out is not None:
        records.write(json_out, found)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(render(found), encoding="utf-8")
    if as_json:
        print_json(records.encode(found))
    else:
        terminal.show(found, console())
        for path in (path for path in (html, json_out) if path is not None):
            typer.echo(f"written to {path}", err=True)


def _print_prices() -> None:
    from tokc.cost.prices import price_sheet, today

    for name, price in price_sheet().items():
        old = ", older than a year" if price.stale(today()) else ""
        typer.echo(
            f"{name:15} {price.usd_per_hour:8.5g} USD/h  {price.machine}; {price.source}, {price.region}, "
            f"{price.published}{old}"
        )
