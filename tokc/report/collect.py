"""Makes a report of an artifact's own files, a bench and a price."""

import json
from datetime import date
from pathlib import Path

from tokc.cost import records
from tokc.cost.energy import Carbon
from tokc.cost.measure import Bench, Point
from tokc.cost.prices import DEFAULT_PRICE, Price, parse_price, usd_per_token
from tokc.cost.roofline import Work, error, predict_answers, read_work
from tokc.cost.serving.record import ServingBench
from tokc.cost.sheet import Sheet, sheet_for
from tokc.cost.spread import Spread
from tokc.cost.step_model import StepModel
from tokc.errors import TokcError
from tokc.report.emissions import Rate, emissions_of
from tokc.report.identity import manifest_sha256 as manifest_sha256
from tokc.report.model import (
    UTILIZATIONS,
    Batch,
    Checked,
    Figure,
    Identity,
    Inputs,
    OpBytes,
    Report,
    TokenCost,
)
from tokc.report.prediction import machine_for, model_of, predict
from tokc.report.quality import evaluation_of, ledger_of
from tokc.runtime.artifact import Artifact

PREDICTED_BATCHES = (1, 8)
PREDICTED_PROMPT, PREDICTED_OUTPUT = 128, 64
VERIFIED_FILES = ("kernels.json", "xla.json")


def bench_path(artifact: Path) -> Path:
    """Return where `tokc bench` writes by default: beside the artifact, whose files are sealed by hashes."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tokc')}.bench.json")


def load_path(artifact: Path) -> Path:
    """Return where `tokc load-test` writes by default."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tokc')}.load.json")


def load_of(artifact: Path) -> ServingBench | None:
    """Return the load test of this very build, None where there is none beside the artifact.

    Raises: TokcError if the file is damaged.
    """
    path = load_path(artifact)
    load = records.read(ServingBench, path) if path.exists() else None
    return load if load is not None and load.manifest_sha256 == manifest_sha256(artifact) else None


def other_build(bench: Bench, path: Path, artifact: Path) -> TokcError:
    """Return the refusal of a bench that is not of this build."""
    return TokcError(
        f"the bench is of another build of '{bench.artifact}'",
        where=str(path),
        hint=f"measure this one: tokc bench {artifact}",
    )


def collect(
    path: Path,
    price: Price | None,
    today: date,
    bench: Path | None = None,
    device: str | None = None,
    carbon: Carbon | None = None,
) -> Report:
    """Return the report of an artifact; without a bench rates are predicted only.

    They are predicted for `device`, a row of the device sheet, if the artifact is for an accelerator, and
    else for this machine, which is probed. `price` None takes the sheet's default for a CPU; `carbon` None
    leaves emissions out.

    Raises: TokcError if a file is damaged, the bench is of another artifact, or an accelerator has no price.
    """
    artifact = Artifact.open(path, verify=False)
    target = artifact.manifest.target
    sheet = sheet_for(f"{target.kind}:{target.device}", device)
    price = price or _default_price(sheet)
    found = bench or (bench_path(path) if bench_path(path).exists() else None)
    if found is not None:
        inputs = _measured(found, path, price)
    else:
        inputs = Inputs(host=machine_for(path, device).host, price=price)
    machine = machine_for(path, device, inputs.host)
    work, load = read_work(path), load_of(path)
    costs = _costs(work, inputs, model_of(path, machine))
    watts = None if sheet is None else sheet.watts
    return Report(
        identity=_identity(artifact),
        host=inputs.host,
        price=price,
        price_stated=price.stated(today),
        batches=_batches(work, inputs),
        costs=costs,
        op_context=work.decode.context,
        op_bytes=tuple(
            OpBytes(op.op, op.count, op.bytes, op.flops)
            for op in sorted(work.decode.ops, key=lambda op: op.bytes, reverse=True)
        ),
        ledger=ledger_of(path),
        measured_at=inputs.measured_at,
        load_s=inputs.load_s,
        peak_rss_bytes=inputs.peak_rss_bytes,
        foreign_cpu=inputs.foreign_cpu,
        profile=inputs.profile,
        drafted=inputs.drafted,
        verification=_verification(path),
        evaluation=evaluation_of(path),
        load=load,
        emissions=None if carbon is None else emissions_of(carbon, load, _rates(costs), watts),
        prediction=predict(path, machine, price),
    )


def _rates(costs: tuple[TokenCost, ...]) -> list[Rate]:
    return [Rate(f"batch {one.batch}", one.tokens_per_s) for one in costs if one.utilization == 1]


def _verification(artifact: Path) -> tuple[Checked, ...]:
    """Return what the artifact states of its code's checking; nothing for code that the build ran."""
    for name in VERIFIED_FILES:
        file = artifact / "kernels" / name
        if file.exists():
            found: dict[str, str] = json.loads(file.read_text())["verification"]
            return tuple(Checked(part, how) for part, how in found.items())
    return ()


def _default_price(sheet: Sheet | None) -> Price:
    if sheet is not None:
        raise TokcError(
            f"the price sheet has no row for {sheet.summary}",
            hint="say what an hour of it costs you, as in --price 2.50/h",
        )
    return parse_price(DEFAULT_PRICE)


def _measured(path: Path, artifact: Path, price: Price) -> Inputs:
    bench = records.read(Bench, path)
    if bench.manifest_sha256 != manifest_sha256(artifact):
        raise other_build(bench, path, artifact)
    return Inputs(
        host=bench.host,
        price=price,
        points=bench.points,
        measured_at=bench.measured_at,
        load_s=bench.load_s,
        peak_rss_bytes=bench.peak_rss_bytes,
        foreign_cpu=bench.foreign_cpu,
        profile=bench.profile,
        drafted=bench.drafted,
    )


def _identity(artifact: Artifact) -> Identity:
    manifest = artifact.manifest
    return Identity(
        name=manifest.name,
        manifest_sha256=manifest_sha256(artifact.path),
        tokc_version=manifest.tokc_version,
        family=manifest.model.family,
        target=f"{manifest.target.kind}:{manifest.target.device}",
        pipeline=manifest.pipeline,
        context=manifest.limits.context,
        weight_bytes=manifest.weight_bytes,
        artifact_bytes=sum(file.bytes for file in manifest.files.values()),
        kv_bytes_per_token=int(manifest.kv.bytes_per_token),
        kv_dtype=manifest.kv.dtype,
        licence=manifest.licence,
    )


def _batches(work: Work, inputs: Inputs) -> tuple[Batch, ...]:
    if inputs.points:
        return tuple(_batch(work, inputs, point.batch, point) for point in inputs.points)
    return tuple(_batch(work, inputs, batch, None) for batch in PREDICTED_BATCHES)


def _batch(work: Work, inputs: Inputs, batch: int, point: Point | None) -> Batch:
    prompt = PREDICTED_PROMPT if point is None else point.prompt_tokens
    output = PREDICTED_OUTPUT if point is None else point.output_tokens
    answers = predict_answers(work, inputs.host, batch=batch, prompt=prompt, output=output)
    rows = (
        (
            "time to first token",
            "s",
            answers.prefill_s * _mean_wait(batch, prompt, work.prefill.tokens),
            None if point is None else point.ttft_s,
        ),
        ("time per output token", "s", answers.decode.seconds, None if point is None else point.tpot_s),
        ("output rate", "tokens/s", answers.tokens_per_s, None if point is None else point.tokens_per_s),
        (
            "prefill rate",
            "tokens/s",
            batch * prompt / answers.prefill_s,
            None if point is None else point.prefill_tokens_per_s,
        ),
    )
    return Batch(
        batch=batch,
        prompt_tokens=prompt,
        output_tokens=output,
        repetitions=0 if point is None else point.ttft_s.repetitions,
        figures=tuple(_figure(name, unit, predicted, spread) for name, unit, predicted, spread in rows),
        bandwidth_share=answers.decode.bandwidth_share,
    )


def _figure(name: str, unit: str, predicted: float, spread: Spread | None) -> Figure:
    if spread is None:
        return Figure(name, unit, None, predicted)
    return Figure(
        name,
        unit,
        spread.median,
        predicted,
        spread.least,
        spread.greatest,
        error(predicted, spread.median),
    )


def _mean_wait(batch: int, prompt: int, chunk: int) -> float:
    """Return when the requests' first tokens come on average, as a share of the time that all prompts take.

    Prompts are read in order in chunks; a request's token comes with the chunk that its prompt ends in.
    """
    whole = batch * prompt
    ends = [min(-(-(index + 1) * prompt // chunk) * chunk, whole) for index in range(batch)]
    return sum(ends) / batch / whole


def _costs(work: Work, inputs: Inputs, model: StepModel) -> tuple[TokenCost, ...]:
    costs = []
    for batch in _batches(work, inputs):
        rate = next(one.measured for one in batch.figures if one.name == "output rate")
        basis = "predicted" if rate is None else "measured"
        if rate is None:
            seconds = model.answers_s(batch.batch, batch.prompt_tokens, batch.output_tokens)
            rate = batch.batch * batch.output_tokens / seconds
        for utilization in UTILIZATIONS:
            usd = usd_per_token(inputs.price, rate, utilization)
            costs.append(TokenCost(batch.batch, utilization, basis, rate, usd * 1e3, usd * 1e6))
    return tuple(costs)
