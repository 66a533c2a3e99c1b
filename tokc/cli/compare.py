"""`tokc compare`: what a token costs, over artifacts, devices and hosted APIs."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import console, print_json

DEVICES_HELP = "Rows of the device sheet to predict for, by commas: l4,h100-sxm; or 'all'."


def compare(
    artifacts: Annotated[list[Path], typer.Argument(help="NAME.tokc folders.", show_default=False)],
    *,
    devices: Annotated[str | None, typer.Option(help=DEVICES_HELP)] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(help="'0.20/h' of this machine, or 'h100-sxm=2.50/h'; may be repeated."),
    ] = None,
    hosted: Annotated[
        str | None, typer.Option(help="Rows of the sheet of APIs, by commas, or 'none'. [default: all]")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare the cost of output tokens; rates are measured where an artifact has a bench, else predicted."""
    from tokc.cost import records
    from tokc.cost.hosted import named_hosted
    from tokc.cost.prices import today
    from tokc.report import compare_text
    from tokc.report.compare import compare as over
    from tokc.report.compare import parse_prices

    apis = named_hosted([] if hosted == "none" else _names(hosted))
    found = over(artifacts, _names(devices), parse_prices(price or ()), apis, today())
    if as_json:
        print_json(records.encode(found))
    elif markdown:
        typer.echo(compare_text.markdown(found), nl=False)
    else:
        console().print(compare_text.terminal(found))


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
