"""`tokc build`: from a model's files to an artifact."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from tokc.cli import check as gates_of
from tokc.cli.check import GATE_HELP, Inconclusive
from tokc.cli.console import console, needs_extra, print_json, progress
from tokc.errors import TokcError
from tokc.model_files import default_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokc.artifact.build_cache import Option
    from tokc.compiler import Request
    from tokc.cost.gates import Gate, Judged
    from tokc.ir.program import DraftKind
    from tokc.report.gate_figures import Pricing

Model = Annotated[
    Path,
    typer.Argument(help="A Hugging Face folder, a GGUF file, or an .onnx or .pt2 graph.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The artifact. [default: NAME.tokc]")]
Dtype = Annotated[str, typer.Option(help="How weights are stored: int2, int3, int4, int8, f16 or f32.")]
KvDtype = Annotated[str | None, typer.Option(help="How the cache is stored: f16, int8, int4 or f32.")]
CalibrationText = Annotated[
    Path | None, typer.Option(help="What gptq, awq and auto read. [default: a text of tokc's]")
]
Speculate = Annotated[
    Literal["eagle", "medusa"] | None, typer.Option(help="Draft tokens by trained heads of this kind.")
]
HeadsFile = Annotated[
    Path | None, typer.Option(help="The heads: the .safetensors of `tokc train-heads`, or a published one.")
]
BENCH = "from tokc.cli.entry import main; main()"


@dataclass(frozen=True)
class _Asked:
    """The options that decide an artifact's bytes, as they were given, and those that only look on."""

    model: Path
    options: "Mapping[str, Option]"
    dump_ir: Path | None
    print_after: tuple[str, ...]
    stop_after: str | None
    lora: tuple[Path, ...] = ()
    calibration_text: Path | None = None
    heads: Path | None = None

    @property
    def looks_on(self) -> bool:
        """Return whether the passes must run because something is to be seen of them."""
        return bool(self.dump_ir or self.print_after or self.stop_after)

    def readable(self) -> bool:
        """Return whether all files are there; if not, the compiler says which."""
        files = (self.model, *self.lora, self.calibration_text, self.heads)
        return all(path.exists() for path in files if path is not None)

    def key(self, out: Path) -> str:
        """Return the key of the build in the cache."""
        from tokc.artifact.build_cache import key_of

        name, text = out.name.removesuffix(".tokc"), self.calibration_text
        return key_of(self.model, self.options, name, lora=self.lora, calibration_text=text, heads=self.heads)

    def request(self, unfinished: Path | None = None) -> "Request":
        """Return it as the compiler takes it; imports the compiler."""
        with needs_extra("build", "build"):
            from tokc.compiler import Request, precision
        given = self.options
        kv_dtype = given["kv_dtype"]
        return Request(
            self.model,
            target=str(given["target"]),
            precision=precision(str(given["dtype"]), None if kv_dtype is None else str(kv_dtype)),
            passes=None if given["passes"] is None else str(given["passes"]),
            context=None if given["context"] is None else int(given["context"]),
            check=bool(given["check"]),
            dump_ir=self.dump_ir,
            print_after=self.print_after,
            stop_after=self.stop_after,
            lora=self.lora,
            calibration_text=self.calibration_text,
            unfinished=unfinished,
            speculate=cast("DraftKind | None", given.get("speculate")),
            heads=self.heads,
        )


@dataclass(frozen=True)
class _Built:
    """An artifact and its ledger; `kept_s` is what its first build took if it was found in the cache."""

    path: Path | None
    pipeline: str
    ledger: Sequence[Mapping[str, object]]
    seconds: float
    kept_s: float | None = None
    warnings: tuple[str, ...] = ()


def build(
    model: Model,
    *,
    target: Annotated[str, typer.Option(help="Where it will run; see `tokc targets`.")] = "cpu",
    out: Out = None,
    dtype: Dtype = "int4",
    kv_dtype: KvDtype = None,
    passes: Annotated[str | None, typer.Option(help="A pipeline of your own; see `tokc passes`.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of context to make room for.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Target, passes and context, from `tokc tune`.")] = None,
    lora: Annotated[list[Path] | None, typer.Option(help="Merge this adapter's folder; repeatable.")] = None,
    calibration_text: CalibrationText = None,
    speculate: Speculate = None,
    heads: HeadsFile = None,
    check: Annotated[bool, typer.Option(help="Compare the answers after every pass.")] = True,
    ledger: Annotated[
        Literal["checked", "full"], typer.Option(help="'full' measures tokens/s after every pass, too.")
    ] = "checked",
    dump_ir: Annotated[Path | None, typer.Option(help="Write the program after each pass here.")] = None,
    print_after: Annotated[list[str] | None, typer.Option(help="Print the program after this pass.")] = None,
    stop_after: Annotated[str | None, typer.Option(help="Stop after this pass; write no artifact.")] = None,
    gate: Annotated[list[str] | None, typer.Option(help=GATE_HELP)] = None,
    price: Annotated[str | None, typer.Option(help="For gates on cost; as in `tokc check`.")] = None,
    utilization: Annotated[str | None, typer.Option(help="For gates on cost. [default: 100%]")] = None,
    inconclusive: Annotated[Inconclusive, typer.Option(help="What a gate that noise hides does.")] = "fail",
    cache: Annotated[bool, typer.Option(help="Take an identical build from the user's cache.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a model into an artifact that `tokc run` and `tokc serve` load."""
    options: dict[str, Option] = {"target": target, "dtype": dtype, "kv_dtype": kv_dtype, "passes": passes}
    options |= {"context": context, "check": check}
    options |= _of_draft(speculate, heads)
    if recipe is not None:
        options |= _of_recipe(recipe, options)
    printed, adapters = tuple(print_after or ()), tuple(lora or ())
    asked = _Asked(model, options, dump_ir, printed, stop_after, adapters, calibration_text, heads)
    if dry_run:
        _estimate(asked.request(), as_json=as_json)
        return
    pricing = gates_of.pricing_of(price, utilization)
    gates = gates_of.parse(gate, pricing)
    if gates and stop_after is not None:
        raise typer.BadParameter("--stop-after writes no artifact that --gate could hold")
    built = _build(asked, out or default_out(model), cache=cache)
    if ledger == "full":
        built = _measure_passes(asked, built)
    judged = _judge(built, gates, pricing)
    _show(built, judged, as_json=as_json)
    gates_of.hold(judged, inconclusive_fails=inconclusive == "fail")


def _of_draft(speculate: str | None, heads: Path | None) -> "Mapping[str, Option]":
    """Return the option of a draft, if one is asked for.

    Raises: BadParameter if only one of the two is given.
    """
    if (speculate is None) != (heads is None):
        problem = "--speculate KIND and --heads PATH go together; `tokc train-heads` makes heads"
        raise typer.BadParameter(problem)
    return {} if speculate is None else {"speculate": speculate}


def _of_recipe(path: Path, given: "Mapping[str, Option]") -> "Mapping[str, Option]":
    """Return the options that a recipe states.

    Raises: BadParameter if one of them was given, too.
    """
    from tokc.tuning.recipe import read_recipe

    stated = {"target": "cpu", "dtype": "int4", "kv_dtype": None, "passes": None, "context": None}
    for name, default in stated.items():
        if given[name] != default:
            option = name.replace("_", "-")
            raise typer.BadParameter(f"--{option} is what the recipe states: give one of the two")
    found = read_recipe(path)
    return {"target": found.target, "passes": found.passes, "context": found.context}


def _build(asked: _Asked, out: Path, *, cache: bool) -> _Built:
    """Take the artifact from the cache, or build it and keep it there."""
    from tokc.artifact.build_cache import BuildCache, default_folder
    from tokc.knobs import build_cache_on

    start_s = time.perf_counter()
    cached = BuildCache(default_folder()) if cache and build_cache_on() and not asked.looks_on else None
    with progress() as say:
        key = ""
        if cached is not None and asked.readable():
            say(f"look for an identical build in {cached.folder}")
            key = asked.key(out)
            kept = cached.fetch(key, out)
            if kept is not None:
                quality = json.loads((out / "quality.json").read_text())
                took_s = time.perf_counter() - start_s
                return _Built(out, quality["pipeline"], quality["ledger"], took_s, kept.seconds)
        unfinished = cached.folder.with_name("unfinished") / key if cached is not None and key else None
        built = _compile(asked.request(unfinished), out, start_s, say)
        if cached is not None and built.path is not None and not cached.keep(key, built.path, built.seconds):
            say(f"not kept: no room in {cached.folder}")
    return built


def _compile(request: "Request", out: Path, start_s: float, say: "Callable[[str], None]") -> _Built:
    from tokc.compiler import build as compile_model

    result = compile_model(request, out, say)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    ledger = [{**entry.to_json(), "seconds": entry.seconds} for entry in result.ledger]
    seconds = time.perf_counter() - start_s
    return _Built(result.path, result.pipeline, ledger, seconds, warnings=result.warnings)


def _measure_passes(asked: _Asked, built: _Built) -> _Built:
    """Measure after every pass that changed something, and write the rates beside the artifact."""
    from tokc.cost import records
    from tokc.pass_measuring import measure_passes
    from tokc.report.quality import rates_path

    if built.path is None:
        raise typer.BadParameter("--stop-after writes no artifact whose passes --ledger full could measure")
    changed = [number for number, row in enumerate(built.ledger, start=1) if row["changed"]]
    with progress() as say:
        found = measure_passes(asked.request(), built.path, changed, say)
    if found is None:
        typer.echo("this machine does not run the target's code: no pass was measured", err=True)
        return built
    records.write(rates_path(built.path), found)
    rows = [{**row, "tokens_per_s": found.after(number)} for number, row in enumerate(built.ledger, start=1)]
    return replace(built, ledger=rows)


def _judge(built: _Built, gates: "tuple[Gate, ...]", pricing: "Pricing") -> "tuple[Judged, ...]":
    """Hold the artifact against its gates; one that bounds what only a bench tells has it measured."""
    if not gates or built.path is None:
        return ()
    from tokc.report.gate_figures import bench_of, figures_of, judge_all

    asked = {gate.batch for gate in gates if gate.measured and gate.batch is not None}
    bench = bench_of(built.path) if any(gate.measured for gate in gates) else None
    known = set() if bench is None else {point.batch for point in bench.points}
    if any(gate.measured for gate in gates) and (bench is None or not asked <= known):
        _measure(built.path, sorted(asked | known))
    return judge_all(gates, figures_of(built.path, pricing))


def _measure(artifact: Path, batches: "Sequence[int]") -> None:
    """Run `tokc bench` in a process of its own, whose memory holds nothing of the compiler.

    Raises: TokcError if it fails.
    """
    options = [text for batch in batches for text in ("--batch", str(batch))]
    command = [sys.executable, "-c", BENCH, "bench", str(artifact), *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TokcError(
            f"the gates need a bench, which failed: {said[-1] if said else done.returncode}",
            where=str(artifact),
            hint=f"the artifact is whole; measure it where it runs: tokc bench {artifact}",
        )


def _show(built: _Built, judged: "Sequence[Judged]", *, as_json: bool) -> None:
    if as_json:
        from tokc.cost import records

        ledger = [{name: fact for name, fact in row.items() if name != "seconds"} for row in built.ledger]
        print_json(
            {
                "artifact": built.path and str(built.path),
                "pipeline": built.pipeline,
                "ledger": ledger,
                "seconds": round(built.seconds, 3),
                "cached": built.kept_s is not None,
                "warnings": list(built.warnings),
                "gates": [records.encode(one) for one in judged],
            }
        )
        return
    _print_ledger(built)
    if judged:
        from tokc.report import gate_table

        console().print("", gate_table.terminal(judged))


def _print_ledger(built: _Built) -> None:
    from rich.table import Table

    from tokc.report import units
    from tokc.runtime.artifact import folder_bytes

    table = Table("pass", box=None, pad_edge=False, header_style="dim")
    measured = any(row.get("tokens_per_s") is not None for row in built.ledger)
    columns = ("nodes", "weights", "bytes/token", "KL, nats", "seconds", *(("tokens/s",) if measured else ()))
    for column in columns:
        table.add_column(column, justify="right")
    for row in built.ledger:
        kl, seconds = row.get("kl_mean"), row.get("seconds")
        table.add_row(
            str(row["pass_spec"]),
            str(row["nodes_after"]),
            units.scaled(_number(row["weight_bytes_after"]), "B"),
            units.change(_number(row["bytes_before"]), _number(row["bytes_after"])),
            "–" if kl is None else "exact" if row["exact"] else f"{_number(kl):.1e}",
            "–" if seconds is None else f"{_number(seconds):.2f}",
            *((_rate(row.get("tokens_per_s")),) if measured else ()),
        )
    out = console()
    out.print(table)
    if built.path is None:
        out.print("stopped as asked; no artifact was written")
        return
    if built.kept_s is not None:
        first, now = units.seconds(built.kept_s), units.seconds(built.seconds)
        out.print(f"\nfound in the build cache: the first build of the same took {first}, this one {now}")
    size = folder_bytes(built.path)
    out.print(f"\n[bold]{built.path}[/] {units.scaled(size, 'B')}; try: tokc run {built.path}")


def _rate(value: object) -> str:
    from tokc.report import units

    return "–" if value is None else units.figures(_number(value))


def _number(value: object) -> float:
    assert isinstance(value, int | float), "the ledger has numbers there"
    return float(value)


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
