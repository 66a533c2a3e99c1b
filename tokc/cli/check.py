"""`tokc check`: does an artifact keep its gates."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tokc.cli.console import console, print_json
from tokc.errors import GateNotMet, UnknownOption

if TYPE_CHECKING:
    from tokc.cost.gates import Gate, GatesFile, Judged
    from tokc.report.gate_figures import Pricing

GATE_HELP = "A limit such as 'size<=90MB' or 'tpot@8<=40ms'; may be repeated."
MORE_OFTEN = (
    "measure more often (tokc bench --repetitions 10, tokc diff --rounds 20, tokc eval --tokens 20000), "
    "or --inconclusive pass"
)
Inconclusive = Literal["fail", "pass"]


def check(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    gates: Annotated[Path | None, typer.Option(help='A TOML file: gates = ["size<=90MB"].')] = None,
    gate: Annotated[list[str] | None, typer.Option(help=GATE_HELP)] = None,
    bench: Annotated[
        Path | None, typer.Option(help="What `tokc bench` wrote. [default: NAME.bench.json]")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help="Of the machine: '0.20/h', or a row of the sheet.")
    ] = None,
    utilization: Annotated[
        str | None, typer.Option(help="Share of the paid time in use. [default: 100%]")
    ] = None,
    inconclusive: Annotated[
        Inconclusive | None, typer.Option(help="What noise on both sides of a limit does. [default: fail]")
    ] = None,
    list_metrics: Annotated[bool, typer.Option("--metrics", help="List the metrics and end.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Hold an artifact against limits on size, quality, speed and cost; exit code 3 if one is not met."""
    from tokc.cost.gates import GatesFile, read_gates
    from tokc.report.gate_figures import figures_of, judge_all

    if list_metrics:
        _print_metrics(as_json=as_json)
        return
    stated = GatesFile(()) if gates is None else read_gates(gates)
    pricing = pricing_of(price, utilization, stated)
    asked = (*stated.gates, *parse(gate, pricing))
    if not asked:
        raise UnknownOption("no gates were given", hint="--gates gates.toml, or --gate 'size<=90MB'")
    stops = inconclusive_fails(inconclusive or stated.inconclusive)
    figures = figures_of(artifact, pricing, bench)
    judged = judge_all(asked, figures)
    note = figures.disturbed if any(one.measured for one in asked) else None
    show(judged, artifact, note, markdown=markdown, as_json=as_json)
    hold(judged, inconclusive_fails=stops)


def pricing_of(price: str | None, utilization: str | None, stated: "GatesFile | None" = None) -> "Pricing":
    """Return what the options say of price and use, where they are silent what the file says.

    Raises: TokcError if the price or UnknownOption if the utilization is none.
    """
    from tokc.cost.gates import parse_utilization
    from tokc.cost.prices import parse_price
    from tokc.report.gate_figures import Pricing

    named = price or (stated and stated.price)
    share = (stated and stated.utilization) or 1.0
    return Pricing(
        price=parse_price(named) if named else None,
        utilization=share if utilization is None else parse_utilization(utilization),
    )


def inconclusive_fails(stated: str | None) -> bool:
    """Return whether an inconclusive gate stops a pipeline.

    Raises: UnknownOption if it is neither `fail` nor `pass`.
    """
    if stated not in {None, "fail", "pass"}:
        raise UnknownOption(f"unknown value '{stated}' of 'inconclusive'; choose from fail, pass")
    return stated != "pass"


def show(
    judged: "Sequence[Judged]", artifact: Path, note: str | None, *, markdown: bool, as_json: bool
) -> None:
    """Print the verdicts, and a note on the measurement if there is one."""
    from tokc.cost import records
    from tokc.report import gate_table

    if as_json:
        gates = [records.encode(one) for one in judged]
        print_json({"artifact": str(artifact), "gates": gates, "note": note})
    elif markdown:
        typer.echo(gate_table.markdown(judged, artifact.name, note), nl=False)
    else:
        console().print(gate_table.terminal(judged))
        if note:
            console().print(note, style="dim")


def hold(judged: "Sequence[Judged]", *, inconclusive_fails: bool) -> None:
    """End with exit code 3 if a gate stops the pipeline.

    Raises: GateNotMet.
    """
    from tokc.cost.gates import failed

    stopped = failed(judged, inconclusive_fails=inconclusive_fails)
    if not stopped:
        return
    unclear = any(one.verdict == "inconclusive" for one in stopped)
    raise GateNotMet(
        f"{len(stopped)} of {len(judged)} gates stop this: " + ", ".join(f"'{one.gate}'" for one in stopped),
        hint=MORE_OFTEN if unclear else None,
    )


def parse(texts: Sequence[str] | None, pricing: "Pricing") -> "tuple[Gate, ...]":
    """Return the gates of a command's options.

    Raises: UnknownOption if one is none, or bounds a cost where no price was given.
    """
    from tokc.cost.gates import parse_gate

    gates = tuple(map(parse_gate, texts or ()))
    for gate in gates:
        if gate.metric == "cost_per_mtok" and pricing.price is None:
            raise UnknownOption(f"gate '{gate.text}' needs a price", hint="say it: --price 0.20/h")
    return gates


def _print_metrics(*, as_json: bool) -> None:
    from rich.table import Table

    from tokc.cost.gates import BATCHED, METRICS
    from tokc.cost.quantities import UNITS

    if as_json:
        print_json({name: {"kind": one.kind, "source": one.source} for name, one in METRICS.items()})
        return
    table = Table("metric", "units", "from", "what it is", box=None, pad_edge=False, header_style="dim")
    for name, one in METRICS.items():
        shown = f"{name}[@BATCH]" if name in BATCHED else name
        accepted = ", ".join(unit or "–" for unit in UNITS[one.kind])
        table.add_row(shown.replace("[", r"\["), accepted, one.source, one.summary)
    console().print(table)
