"""What is predicted of an artifact over batch, context and chunk, and how far that is from measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokc.cost import records
from tokc.cost.calibration import mean_error
from tokc.cost.devices import Host
from tokc.cost.grid import Grid, GridCell
from tokc.cost.machine import Machine, machine_here, machine_of
from tokc.cost.prices import Price, usd_per_token
from tokc.cost.roofline import error, read_work
from tokc.cost.sheet import sheet_for
from tokc.cost.step_model import Step, StepModel, StepWorks
from tokc.report import units
from tokc.report.identity import manifest_sha256
from tokc.runtime.artifact import Artifact
from tokc.runtime.manifest import Manifest

BATCHES = (1, 4, 16, 64)
CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
CHUNKS = (16, 64, 128, 256, 512)
# Of what the weights leave, the share that a cache may take; the rest is for activations and for others.
CACHE_SHARE = 0.85
MTOK = 1e6


@dataclass(frozen=True)
class Decoding:
    """Predicted: the next token of `batch` sequences of `context` tokens; `usd_per_mtok` at full use."""

    batch: int
    context: int
    token_s: float
    tokens_per_s: float
    usd_per_mtok: float | None


@dataclass(frozen=True)
class Reading:
    """Predicted: a prompt's first chunk of so many tokens."""

    chunk: int
    step_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Capacity:
    """The most sequences of `context` tokens whose cache fits beside the weights.

    `batch` is the most that a step takes of them, `tokens_per_s` predicted for it, None where none fits.
    """

    context: int
    sequences: int
    batch: int
    tokens_per_s: float | None
    usd_per_mtok: float | None


@dataclass(frozen=True)
class KindTime:
    """The predicted seconds of the launches of a kind in a decode step of one sequence."""

    kind: str
    seconds: float


@dataclass(frozen=True)
class Compared:
    """A step that was measured; `error` is predicted / measured - 1.

    Where the rate of memory was probed beside the step, it is `read_bytes_per_s`, `predicted_s` is at that
    rate and `calibrated_s` at the calibration's; else both are None.
    """

    batch: int
    context: int
    predicted_s: float
    measured_s: float
    median_s: float
    error: float
    calibrated_s: float | None = None
    read_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A grid that was measured beside what is predicted for it; `basis` says what predictions rest on."""

    artifact: str
    basis: str
    measured_at: str
    threads: int
    foreign_cpu: float
    cells: tuple[Compared, ...]

    @property
    def mean_error(self) -> float:
        """Return the mean size of the errors."""
        return mean_error([cell.error for cell in self.cells])

    @property
    def worst_error(self) -> float:
        """Return the largest size of the errors."""
        return max(abs(cell.error) for cell in self.cells)


@dataclass(frozen=True)
class Prediction:
    """What an artifact does on a machine with room for `kv_tokens`; `comparison` is None without a grid."""

    machine: str
    basis: str
    kv_tokens: int
    kv_bytes: float
    decoding: tuple[Decoding, ...]
    reading: tuple[Reading, ...]
    capacity: tuple[Capacity, ...]
    kinds: tuple[KindTime, ...]
    comparison: Comparison | None = None


def grid_path(artifact: Path) -> Path:
    """Return where `tokc bench --grid` writes by default."""
    return artifact.with_name(f"{artifact.name.removesuffix('.tokc')}.grid.json")


def grid_of(artifact: Path) -> Grid | None:
    """Return the grid of this very build, None where there is none beside the artifact.

    Raises: TokcError if the file is damaged.
    """
    path = grid_path(artifact)
    found = records.read(Grid, path) if path.exists() else None
    return found if found is not None and found.manifest_sha256 == manifest_sha256(artifact) else None


def model_of(artifact: Path, machine: Machine) -> StepModel:
    """Return what predicts steps of an artifact on a machine.

    Raises: TokcError if its files are damaged or of an earlier tokc.
    """
    return machine.model(StepWorks.read(artifact, read_work(artifact)))


def machine_for(artifact: Path, device: str | None, host: Host | None = None) -> Machine:
    """Return the device of the sheet that an artifact runs on, this machine if it is for a CPU.

    Raises: UnknownOption if the device is unknown or runs another target.
    """
    target = Artifact.open(artifact, verify=False).manifest.target
    sheet = sheet_for(f"{target.kind}:{target.device}", device)
    return machine_here(target, host) if sheet is None else machine_of(sheet)


def predict(artifact: Path, machine: Machine, price: Price | None) -> Prediction:
    """Return the prediction, with a comparison if a grid of this build was measured on this machine.

    Raises: TokcError as `model_of`.
    """
    manifest = Artifact.open(artifact, verify=False).manifest
    model = model_of(artifact, machine)
    contexts = _contexts(manifest)
    kv_bytes, kv_tokens = cache_room(manifest, machine)
    grid = grid_of(artifact) if manifest.target.kind == "cpu" else None
    return Prediction(
        machine=machine.name,
        basis=machine.basis,
        kv_tokens=kv_tokens,
        kv_bytes=kv_bytes,
        decoding=tuple(
            _decoding(model, batch, context, price)
            for batch in BATCHES
            for context in contexts
            if batch * context <= kv_tokens and batch <= manifest.limits.max_rows
        ),
        reading=tuple(_reading(model, chunk) for chunk in CHUNKS if chunk <= model.works.chunk),
        capacity=capacities(model, manifest, machine, price),
        kinds=_kinds(model, contexts),
        comparison=None if grid is None else _compare(model, machine, grid),
    )


def cache_room(manifest: Manifest, machine: Machine) -> tuple[float, int]:
    """Return the bytes that a cache may take on a machine, and the tokens that fit it."""
    kv_bytes = max(0.0, machine.host.memory_bytes - manifest.weight_bytes) * CACHE_SHARE
    return kv_bytes, int(kv_bytes / manifest.kv.bytes_per_token)


def capacities(
    model: StepModel, manifest: Manifest, machine: Machine, price: Price | None
) -> tuple[Capacity, ...]:
    """Return the largest batch that fits at each context that the artifact was built for."""
    _, tokens = cache_room(manifest, machine)
    return tuple(_capacity(model, manifest, context, tokens, price) for context in _contexts(manifest))


def _contexts(manifest: Manifest) -> list[int]:
    return [one for one in CONTEXTS if one <= manifest.limits.context] or [manifest.limits.context]


def compared(artifact: Path, grid: Grid) -> Comparison:
    """Return a grid of this machine beside its predictions."""
    machine = machine_for(artifact, None)
    return _compare(model_of(artifact, machine), machine, grid)


def _decoding(model: StepModel, batch: int, context: int, price: Price | None) -> Decoding:
    token_s = model.decode_s(batch, context)
    rate = batch / token_s
    return Decoding(batch, context, token_s, rate, _usd(price, rate))


def _usd(price: Price | None, tokens_per_s: float) -> float | None:
    return None if price is None else usd_per_token(price, tokens_per_s) * MTOK


def _reading(model: StepModel, chunk: int) -> Reading:
    step_s = model.prompt_s(chunk)
    return Reading(chunk, step_s, chunk / step_s)


def _capacity(
    model: StepModel, manifest: Manifest, context: int, kv_tokens: int, price: Price | None
) -> Capacity:
    sequences = kv_tokens // context
    batch = min(sequences, manifest.limits.max_rows)
    rate = batch / model.decode_s(batch, context) if batch else None
    return Capacity(context, sequences, batch, rate, None if rate is None else _usd(price, rate))


def _kinds(model: StepModel, contexts: Sequence[int]) -> tuple[KindTime, ...]:
    middle = contexts[len(contexts) // 2]
    times = model.time_by_kind(Step(1, middle)).items()
    return tuple(KindTime(*one) for one in sorted(times, key=lambda one: one[1], reverse=True))


def _compare(model: StepModel, machine: Machine, grid: Grid) -> Comparison:
    cells = tuple(_cell(model, cell) for cell in grid.cells)
    basis = machine.basis
    rates = [cell.read_bytes_per_s for cell in cells if cell.read_bytes_per_s is not None]
    if rates:
        least, most = (units.scaled(rate, "B/s") for rate in (min(rates), max(rates)))
        basis += f"; memory as fast as probed beside each cell, {least} to {most}"
    return Comparison(grid.artifact, basis, grid.measured_at, grid.threads, grid.foreign_cpu, cells)


def _cell(model: StepModel, cell: GridCell) -> Compared:
    calibrated = model.decode_s(cell.batch, cell.context)
    if cell.read_bytes_per_s is None:
        wrong = error(calibrated, cell.token_s)
        return Compared(cell.batch, cell.context, calibrated, cell.token_s, cell.median_s, wrong)
    slower = model.roofs.read_bytes_per_s / cell.read_bytes_per_s
    predicted = replace(model, slower=slower).decode_s(cell.batch, cell.context)
    return Compared(
        cell.batch,
        cell.context,
        predicted,
        cell.token_s,
        cell.median_s,
        error(predicted, cell.token_s),
        calibrated,
        cell.read_bytes_per_s,
    )
