"""`tokc tune`: the cheapest build that keeps its limits."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokc.cli.check import pricing_of
from tokc.cli.console import console, needs_extra, print_json, progress
from tokc.errors import GateNotMet, UnknownOption
from tokc.model_files import default_out

if TYPE_CHECKING:
    from tokc.cost.gates import Gate
    from tokc.tuning.cluster import Cluster
    from tokc.tuning.machines import ThisMachine
    from tokc.tuning.search import Search
    from tokc.tuning.trial import Setting

Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Try on a Ray cluster, as auto: one a machine."),
]


def tune(
    model: Annotated[Path, typer.Argument(help="A model as `tokc build` takes it.", show_default=False)],
    *,
    target: Annotated[str, typer.Option(help="Where it will run: this machine, to be measured.")] = "cpu",
    minimize: Annotated[str | None, typer.Option(help="As in cost_per_mtok@8, tpot or size.")] = None,
    maximize: Annotated[str | None, typer.Option(help="As in tokens_per_s@8.")] = None,
    subject_to: Annotated[list[str] | None, typer.Option(help="As in 'ppl_ratio<=1.03'.")] = None,
    budget: Annotated[str, typer.Option(help="When to stop: 30min, 90s.")] = "30min",
    trials: Annotated[int | None, typer.Option(min=1, help="Stop after so many, too.")] = None,
    price: Annotated[str | None, typer.Option(help="As in 0.20/h, or a name of the price sheet.")] = None,
    utilization: Annotated[str | None, typer.Option(help="For costs. [default: 100%]")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context to make room for.")] = None,
    eval_tokens: Annotated[int, typer.Option(min=1024, help="Tokens that quality is measured on.")] = 4096,
    ray: Ray = None,
    study: Annotated[Path | None, typer.Option(help="Where it is kept. [default: NAME.tune]")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[default: NAME.recipe.toml]")] = None,
    html: Annotated[Path | None, typer.Option(help="Write trials and Pareto front as one HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every trial as JSON.")] = False,
) -> None:
    """Search how weights and cache are best stored; writes a recipe for `tokc build --recipe`.

    Stopped, by Ctrl-C or the budget, and begun again, it goes on. Exit code 3 if nothing keeps the limits.
    """
    with needs_extra("tune", "tune"):
        from tokc.cost.quantities import parse_amount
        from tokc.tuning.search import Budget, Search
        from tokc.tuning.trial import Setting

    if (minimize is None) == (maximize is None):
        raise UnknownOption("give one of --minimize and --maximize", hint="--minimize cost_per_mtok@8")
    pricing = pricing_of(price, utilization)
    setting = Setting(
        model=model,
        target=target,
        context=context,
        objective=_objective(minimize or maximize or ""),
        maximize=maximize is not None,
        limits=_limits(subject_to),
        pricing=pricing,
        eval_tokens=eval_tokens,
    )
    _require_price(setting)
    allowed = Budget(parse_amount(budget, "seconds", where="--budget"), trials)
    name = default_out(model).stem
    folder = study or Path(f"{name}.tune")
    with progress() as say:
        say("probe this machine" if ray is None else f"join the cluster at {ray}")
        with _machines(setting, folder, ray) as machines:
            search = Search(folder, setting, machines.host)
            search.run(allowed, machines, say)
    if html is not None:
        _write_page(search, html)
    _end(search, out or Path(f"{name}.recipe.toml"), as_json=as_json)


def _machines(
    setting: "Setting", folder: Path, address: str | None
) -> "AbstractContextManager[ThisMachine | Cluster]":
    if address is None:
        from tokc.cost.devices import probe
        from tokc.tuning.machines import ThisMachine

        return nullcontext(ThisMachine(setting, folder, probe()))
    with needs_extra("ray", "tune --ray"):
        from tokc.tuning.cluster import joined
    return joined(setting, address)


def _objective(text: str) -> "Gate":
    from tokc.cost.gates import METRICS, parse_gate

    units = {"bytes": "0B", "seconds": "0s"}
    metric = METRICS.get(text.partition("@")[0])
    return parse_gate(f"{text}>={units.get(metric.kind, '0') if metric else '0'}")


def _limits(texts: list[str] | None) -> "tuple[Gate, ...]":
    from tokc.cost.gates import parse_gate

    return tuple(parse_gate(text) for text in texts or ())


def _require_price(setting: "Setting") -> None:
    if setting.pricing.price is None and any(gate.metric == "cost_per_mtok" for gate in setting.gates):
        raise UnknownOption("a cost needs a price", hint="what an hour of the machine costs: --price 0.20/h")


def _write_page(search: "Search", path: Path) -> None:
    from tokc.tuning.page import render

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(search), encoding="utf-8")


def _end(search: "Search", out: Path, *, as_json: bool) -> None:
    """Print the trials and write the recipe of the best.

    Raises: GateNotMet if none keeps every limit.
    """
    from tokc.cost import records
    from tokc.tuning.recipe import write_recipe
    from tokc.tuning.table import table

    tried, best = search.tried, search.best
    if as_json:
        print_json({"best": best and best.number, "trials": [records.encode(one) for one in tried]})
    else:
        console().print(table(search))
    if best is None:
        raise GateNotMet(
            f"none of {len(tried)} trials keeps every limit", hint="loosen one, or search longer"
        )
    write_recipe(out, search.recipe(best), search.notes(best))
    typer.echo(f"written to {out}; build it: tokc build {search.setting.model} --recipe {out}", err=True)
