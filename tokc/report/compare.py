"""What a million output tokens costs, over artifacts, devices and hosted APIs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tokc.cost.hosted import Hosted, break_even
from tokc.cost.machine import HERE, Machine, machine_here, machine_of
from tokc.cost.measure import Bench
from tokc.cost.prices import DEFAULT_PRICE, Price, parse_price, usd_per_token
from tokc.cost.sheet import Sheet, device_sheet, devices_of, named_device, sheet_for
from tokc.cost.step_model import StepModel
from tokc.errors import UnknownOption
from tokc.report.collect import PREDICTED_OUTPUT, PREDICTED_PROMPT
from tokc.report.gate_figures import bench_of, final_quality
from tokc.report.prediction import Capacity, cache_room, capacities, model_of
from tokc.report.quality import evaluation_of, gate_figures
from tokc.runtime.artifact import Artifact

EVERY_DEVICE = "all"
UTILIZATIONS = (0.1, 0.3, 0.6, 1.0)
PREDICTED_BATCHES = (1, 8, 32)
MTOK = 1e6

Prices = Mapping[str, Price]


@dataclass(frozen=True)
class CostAt:
    """USD for a million output tokens where the machine serves for `utilization` of the paid time."""

    utilization: float
    usd_per_mtok: float


@dataclass(frozen=True)
class Option:
    """An artifact on a device at a batch size; `basis` tells if the rate was measured or predicted.

    `low` and `high` are the 95 % interval of a measured rate; `costs` is empty and `price` None where the
    device has no price. `foreign` tells that its kernels are for another target: only the work is its.
    """

    artifact: str
    target: str
    device: str
    basis: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    low: float | None
    high: float | None
    price: str | None
    costs: tuple[CostAt, ...]
    foreign: bool = False

    def at(self, utilization: float) -> float | None:
        """Return the cost at a utilization, None without a price."""
        return next((one.usd_per_mtok for one in self.costs if one.utilization == utilization), None)


@dataclass(frozen=True)
class Room:
    """What fits an artifact on a device beside its weights, predicted: `kv_tokens` of cache, and by context.

    `foreign` as in `Option`.
    """

    artifact: str
    device: str
    kv_tokens: int
    contexts: tuple[Capacity, ...]
    foreign: bool = False


@dataclass(frozen=True)
class BreakEven:
    """From which utilization on an option costs less than an API, for its lengths; above 1 it never does."""

    artifact: str
    device: str
    batch: int
    hosted: str
    hosted_usd_per_mtok: float
    utilization: float


@dataclass(frozen=True)
class Quality:
    """How near an artifact's answers are to the reference's; `basis` is what was compared.

    A ledger's figures are of 256 tokens, an evaluation's of thousands; those not measured are None.
    """

    artifact: str
    basis: str
    perplexity: float | None
    ppl_ratio: float | None
    kl_mean: float | None
    top1_agree: float | None

    @classmethod
    def of(cls, path: Path) -> "Quality":
        """Return what was measured of an artifact, the evaluation if there is one, else its ledger's end.

        Raises: TokcError if a file is damaged.
        """
        found = evaluation_of(path)
        if found is not None and found.divergence is not None:
            figures = {name: one.figure for name, one in gate_figures(found).items()}
            if found.perplexity is not None:
                figures["perplexity"] = found.perplexity.figure
            basis = f"tokc eval, to {found.divergence.reference}"
        else:
            figures = final_quality(path)
            basis = "ledger, to the imported model" if figures else "not measured"
        names = ("perplexity", "ppl_ratio", "kl_mean", "top1_agree")
        return cls(str(path), basis, *(figures.get(name) for name in names))


@dataclass(frozen=True)
class Comparison:
    """Options and APIs; `notes` say what is left out and which price is old."""

    options: tuple[Option, ...]
    hosted: tuple[Hosted, ...]
    break_evens: tuple[BreakEven, ...]
    notes: tuple[str, ...]
    quality: tuple[Quality, ...] = ()
    rooms: tuple[Room, ...] = ()
    schema_version: int = 1


def parse_prices(texts: Sequence[str]) -> Prices:
    """Return prices by device: `h100-sxm=2.50/h`, or `0.20/h` (or a row of the sheet) for this machine.

    Raises: TokcError if a price is none; UnknownOption if a device is unknown or named twice.
    """
    prices: dict[str, Price] = {}
    for text in texts:
        device, sign, amount = text.rpartition("=")
        device = device if sign else HERE
        if device != HERE:
            named_device(device)
        if device in prices:
            raise UnknownOption(f"two prices for {device}", hint="name the device: --price h100-sxm=2.50/h")
        prices[device] = parse_price(amount)
    return prices


def compare(
    paths: Sequence[Path],
    devices: Sequence[str] | None,
    prices: Prices,
    hosted: Sequence[Hosted],
    today: date,
) -> Comparison:
    """Compare artifacts on the machine of their bench and on devices of the sheet.

    Without `devices`, an artifact that has no bench is predicted for the device of its target; `all` are
    those of the sheet.
    Raises: TokcError if an artifact is damaged; UnknownOption if a device is unknown.
    """
    everything = list(devices or ()) == [EVERY_DEVICE]
    sheets = [named_device(name) for name in (device_sheet() if everything else devices or ())]
    options: list[Option] = []
    notes: list[str] = []
    rooms: list[Room] = []
    for path in paths:
        costing = _Costing(path, prices, notes)
        options += costing.options(sheets)
        rooms += costing.rooms
    unpriced = sorted({one.device for one in options if one.price is None})
    notes += [f"no price for {device}: --price '{device}=2.50/h' states one" for device in unpriced]
    notes += [
        f"{one.name}: the price is of {one.published}, older than a year"
        for one in hosted
        if one.stale(today)
    ]
    stale = sorted({price.name for price in prices.values() if price.stale(today)})
    notes += [f"{name}: the price is older than a year" for name in stale]
    quality = tuple(map(Quality.of, paths))
    return Comparison(
        tuple(options), tuple(hosted), _break_evens(options, hosted), tuple(notes), quality, tuple(rooms)
    )


class _Costing:
    """Makes the options of one artifact; what is left out goes into `notes`."""

    def __init__(self, path: Path, prices: Prices, notes: list[str]) -> None:
        manifest = Artifact.open(path, verify=False).manifest
        self.path, self.prices, self.notes = path, prices, notes
        self.manifest = manifest
        self.target = f"{manifest.target.kind}:{manifest.target.device}"
        self.rooms: list[Room] = []
        self.bench: Bench | None = bench_of(path)

    def options(self, sheets: Sequence[Sheet]) -> list[Option]:
        found = [] if self.bench is None else self._measured(self.bench)
        alone, count = devices_of(self.target)
        for sheet in sheets:
            machine = machine_of(sheet.several(count) if count > 1 else sheet)
            found += self._predicted(machine, foreign=alone not in sheet.targets)
        if found or sheets:
            return found
        own = sheet_for(self.target)
        return self._predicted(machine_here(self.manifest.target) if own is None else machine_of(own))

    def _measured(self, bench: Bench) -> list[Option]:
        options = []
        for point in bench.points:
            interval, moments = point.tokens_per_s.interval(), point.tokens_per_s.moments()
            rate = point.tokens_per_s.median if moments is None else moments[0]
            lengths = (point.batch, point.prompt_tokens, point.output_tokens)
            options.append(self._option(HERE, "measured", lengths, rate, (interval.low, interval.high)))
        return options

    def _predicted(self, machine: Machine, *, foreign: bool = False) -> list[Option]:
        device, model = machine.name, model_of(self.path, machine)
        self._room(machine, model, foreign=foreign)
        points = () if self.bench is None else self.bench.points
        lengths = [(point.batch, point.prompt_tokens, point.output_tokens) for point in points]
        options = []
        for batch, prompt, output in lengths or [
            (batch, PREDICTED_PROMPT, PREDICTED_OUTPUT) for batch in PREDICTED_BATCHES
        ]:
            if self._bytes(batch, prompt + output) > machine.host.memory_bytes:
                self.notes.append(f"{self.path}: batch {batch} does not fit the memory of {device}")
                continue
            rate = batch * output / model.answers_s(batch, prompt, output)
            options.append(
                self._option(device, "predicted", (batch, prompt, output), rate, None, foreign=foreign)
            )
        return options

    def _room(self, machine: Machine, model: StepModel, *, foreign: bool) -> None:
        price = self._price(machine.name)
        found = capacities(model, self.manifest, machine, price)
        tokens = cache_room(self.manifest, machine)[1]
        self.rooms.append(Room(str(self.path), machine.name, tokens, found, foreign))

    def _price(self, device: str) -> Price | None:
        price = self.prices.get(device)
        default = price is None and device == HERE and sheet_for(self.target) is None
        return parse_price(DEFAULT_PRICE) if default else price

    def _bytes(self, batch: int, context: int) -> float:
        return self.manifest.weight_bytes + batch * context * self.manifest.kv.bytes_per_token

    def _option(
        self,
        device: str,
        basis: str,
        lengths: tuple[int, int, int],
        rate: float,
        interval: tuple[float, float] | None,
        *,
        foreign: bool = False,
    ) -> Option:
        price = self._price(device)
        costs = () if price is None else _costs(price, rate)
        return Option(
            artifact=str(self.path),
            target=self.target,
            device=device,
            basis=basis,
            batch=lengths[0],
            prompt_tokens=lengths[1],
            output_tokens=lengths[2],
            tokens_per_s=rate,
            low=None if interval is None else interval[0],
            high=None if interval is None else interval[1],
            price=None if price is None else _stated(price),
            costs=costs,
            foreign=foreign,
        )


def cheapest(options: Sequence[Option]) -> tuple[Option, ...]:
    """Return, for each artifact and device, the batch at which a token costs least, in the order given."""
    best: dict[tuple[str, str, str], Option] = {}
    for option in options:
        key = (option.artifact, option.device, option.basis)
        best[key] = max(best.get(key, option), option, key=lambda one: one.tokens_per_s)
    return tuple(best.values())


def _stated(price: Price) -> str:
    """Return the price of an hour, and its row of the sheet if it has one."""
    return f"{price.usd_per_hour:g} USD/h" + (f", {price.name}" if price.published else "")


def _costs(price: Price, tokens_per_s: float) -> tuple[CostAt, ...]:
    return tuple(CostAt(share, usd_per_token(price, tokens_per_s, share) * MTOK) for share in UTILIZATIONS)


def _break_evens(options: Sequence[Option], hosted: Sequence[Hosted]) -> tuple[BreakEven, ...]:
    found = []
    for option in cheapest(options):
        full = option.at(1.0)
        if full is None:
            continue
        for one in hosted:
            asked = one.per_output_mtok(option.prompt_tokens, option.output_tokens)
            share = break_even(full, asked)
            found.append(BreakEven(option.artifact, option.device, option.batch, one.name, asked, share))
    return tuple(found)
