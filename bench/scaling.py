"""What a deployment for a million users takes, on paper: `python -m bench.scaling`; writes docs/scaling.md.

Nothing runs: models are shapes without weights, their work is counted from the program that each target's own
passes make, devices are rows of the sheet. So all figures are predicted but for the few inputs that say so.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.scaling_text import page
from bench.shapes import SHAPES, sparse_folder
from tokc.compiler import kv_bytes_per_token, work_of
from tokc.cost import records
from tokc.cost.devices import Host
from tokc.cost.prices import Price, price_sheet
from tokc.cost.roofline import OpWork, StepWork, Work, predict
from tokc.cost.sheet import device_sheet
from tokc.importers import import_model
from tokc.instruments import Instruments
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.quality.calibration import Calibration, calibrating
from tokc.targets.base import Precision
from tokc.targets.table import named_target

BATCHES = tuple(range(1, 16)) + tuple(range(16, 257, 8))
DAY_S = 86400.0
# The passes of a kind of target are the same for all its devices.
BUILT_FOR = {"cpu": "cpu:avx512-vnni", "cuda": "cuda:sm_90", "rocm": "rocm:gfx942", "tpu": "tpu:v5e-1"}
# The machine of docs/performance.md, by `tokc bench`; its price is that of the nearest machine in the sheet.
HERE = Host(
    cpu="2 cores of an AMD EPYC (Zen 5)",
    arch="x86_64",
    cores=2,
    memory_bytes=8 << 30,
    instructions=("avx512_vnni",),
    read_bytes_per_s=58.9e9,
    f32_flops_per_s=0.545e12,
    int8_flops_per_s=2.18e12,
    how="measured by the artifact's own threads",
)
MEASURED_CONTEXT = 100  # of decode_b16_smollm2, in the middle: 64 tokens of prompt, then 72
HERE_PRICE = "aws:m7a.large"


@dataclass(frozen=True)
class Demand:
    """What users ask for and what is asked of a device; times in seconds, lengths in tokens.

    `peak` is the busiest hour's rate over the day's mean, `reached` the share of the predicted speed that is
    counted on, `busy` the share of that which the busiest hour may use, `tpot_s` the longest mean time
    between two tokens of an answer, `python_s` the engine's own time for each sequence of a step.
    """

    users: int = 1_000_000
    requests_a_day: float = 10.0
    prompt: int = 600
    output: int = 200
    peak: float = 3.0
    reached: float = 0.5
    busy: float = 0.7
    tpot_s: float = 0.05
    python_s: float = 35e-6
    memory_used: float = 0.9

    @property
    def requests_per_s(self) -> float:
        """Return the requests of the busiest hour."""
        return self.users * self.requests_a_day / DAY_S * self.peak

    @property
    def output_tokens_per_s(self) -> float:
        """Return the output tokens of the busiest hour."""
        return self.requests_per_s * self.output


@dataclass(frozen=True)
class Model:
    """A model as a kind of target runs it."""

    name: str
    weight_bytes: int
    kv_bytes_per_token: int
    work: Work


@dataclass(frozen=True)
class Device:
    """Where a replica runs, alone on a whole device."""

    name: str
    kind: str
    host: Host
    watts: float | None = None
    price: Price | None = None


@dataclass(frozen=True)
class Replica:
    """One device at the batch that makes the most tokens within the limits; all predicted."""

    device: Device
    batch: int
    tokens_per_s: float
    token_s: float
    prefill_s: float
    python_share: float
    replicas: int

    @property
    def kilowatts(self) -> float | None:
        """Return the power limits of all devices together."""
        return None if self.device.watts is None else self.device.watts * self.replicas / 1e3

    @property
    def usd_per_hour(self) -> float | None:
        """Return the price of all machines, where the sheet has one."""
        return None if self.device.price is None else self.device.price.usd_per_hour * self.replicas


@dataclass(frozen=True)
class Refusal:
    """A device that cannot serve the model within the limits, and why."""

    device: Device
    reason: str


def models_of(shape: str) -> dict[str, Model]:
    """Return a model at 4 bits with an f16 cache, as the passes of each kind of target make it.

    All layers are alike, so that one and two of them tell what any number takes.
    """
    one, two = (_models(shape, layers) for layers in (1, 2))
    more = SHAPES[shape]["num_hidden_layers"] - 1
    return {kind: _grown(one[kind], two[kind], more) for kind in BUILT_FOR}


def _models(shape: str, layers: int) -> dict[str, Model]:
    with TemporaryDirectory() as folder:
        imported = import_model(sparse_folder(shape, Path(folder), layers), context=None, lora=())
        return {kind: _model(shape, imported.copy(), target) for kind, target in BUILT_FOR.items()}


def _model(shape: str, program: Program, target: str) -> Model:
    pipeline = Pipeline.parse(named_target(target).pipeline(Precision()))
    with calibrating(Calibration(shapes_only=True)):
        program = Instruments(check=False).run(pipeline, program)
    work = records.decode(Work, work_of(program), where=shape)
    return Model(shape, program.weight_bytes(), kv_bytes_per_token(program), work)


def _grown(one: Model, two: Model, more: int) -> Model:
    """Return the model of one layer and so many more, by what the second adds."""
    work = Work(
        decode=_grown_step(one.work.decode, two.work.decode, more),
        prefill=_grown_step(one.work.prefill, two.work.prefill, more),
    )
    return Model(
        one.name,
        one.weight_bytes + more * (two.weight_bytes - one.weight_bytes),
        one.kv_bytes_per_token + more * (two.kv_bytes_per_token - one.kv_bytes_per_token),
        work,
    )


def _grown_step(one: StepWork, two: StepWork, more: int) -> StepWork:
    before = {op.op: op for op in one.ops}
    ops = []
    for op in two.ops:
        first = before.get(op.op, OpWork(op.op, 0, 0.0, 0.0))
        ops.append(
            OpWork(
                op.op,
                first.count + more * (op.count - first.count),
                first.flops + more * (op.flops - first.flops),
                first.bytes + more * (op.bytes - first.bytes),
            )
        )
    return StepWork(one.tokens, one.context, tuple(ops))


def devices() -> Iterator[Device]:
    """Yield the measured machine, then those of the sheet that tokc makes code for."""
    yield Device("cpu", "cpu", HERE, price=price_sheet()[HERE_PRICE])
    for name, sheet in device_sheet().items():
        if not sheet.targets:
            continue
        yield Device(name, sheet.targets[0].partition(":")[0], sheet.host(), sheet.watts)


def replica_of(model: Model, device: Device, demand: Demand) -> Replica | Refusal:
    """Return the fastest replica within the limits of memory and time between tokens."""
    room = demand.memory_used * device.host.memory_bytes - model.weight_bytes
    most = int(room / (model.kv_bytes_per_token * (demand.prompt + demand.output)))
    if most < 1:
        return Refusal(device, f"does not fit: weights of {model.weight_bytes / 1e9:.2f} GB")
    found = [_at(model, device, demand, batch) for batch in BATCHES if batch <= most]
    fitting = [one for one in found if one.token_s <= demand.tpot_s]
    if not fitting:
        return Refusal(device, f"{1e3 * found[0].token_s:.0f} ms between tokens already alone")
    return max(fitting, key=lambda one: one.tokens_per_s)


def _at(model: Model, device: Device, demand: Demand, batch: int) -> Replica:
    """Return a replica that keeps `batch` sequences running: prompts are read between their steps."""
    context = demand.prompt + demand.output // 2
    step_s = predict(model.work.decode.at(sequences=batch, context=context), device.host).seconds
    reading = model.work.reading(batch=1, prompt=demand.prompt)
    prefill_s = predict(reading, device.host).seconds / demand.reached
    python_s = demand.python_s * batch * demand.output
    cycle_s = batch * prefill_s + demand.output * step_s / demand.reached + python_s
    rate = batch * demand.output / cycle_s
    needed = math.ceil(demand.output_tokens_per_s / (rate * demand.busy))
    return Replica(device, batch, rate, batch / rate, prefill_s, python_s / cycle_s, needed)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.md"))
    out: Path = parser.parse_args().out
    demand = Demand()
    made = {shape: models_of(shape) for shape in SHAPES}
    rows = {
        shape: [replica_of(models[device.kind], device, demand) for device in devices()]
        for shape, models in made.items()
    }
    measured = made["smollm2-135m"]["cpu"].work.decode.at(sequences=16, context=MEASURED_CONTEXT)
    own = 16 / predict(measured, HERE).seconds
    partial = out.with_suffix(".partial")
    partial.write_text(page(demand, {shape: models["cpu"] for shape, models in made.items()}, rows, own))
    partial.rename(out)


if __name__ == "__main__":
    main()
