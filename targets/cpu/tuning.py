"""Searches the schedule of the quantized linear kernels that is the fastest on this machine.

A choice at a time. All candidates are compiled into one library and measured in turns, each by its least time
over the rounds, since other programs and a machine's phases only make a kernel slower. A candidate takes the
default's place if it is faster by more than MARGIN in the mean over shapes and numbers of rows. What a
candidate computes is compared with what the default does, bit by bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.cpu.isa import Isa, runnable_isas
from tokc.targets.cpu.kernels.quant_linear import DEFAULT_SCHEDULE, QuantLinear, Schedule
from tokc.targets.cpu.schedules import Tuned
from tokc.targets.cpu.timing import KernelTimer
from tokc.targets.table import named_target

SHAPES = ((3072, 576), (2048, 2048))  # a projection of a small model, and of one of a billion weights
WEIGHT_BYTES = 384 << 20
ROUNDS = 5
MARGIN = 0.02
NEVER = 1 << 20
AHEAD_BYTES = (4096, 8192, 12288, 16384, 24576)
AHEAD_ROWS = (1, 4)
STREAM_ROWS = (7, 8, 12, 16)
BLOCK_ROWS = (8, 12, 16, 24, 32, 48)
STREAMS = tuple(Schedule(tiles_at_once=tiles, block_rows=NEVER) for tiles in (1, 2))
BLOCK = Schedule(block_rows=1)
CANDIDATES = (*(Schedule(ahead_bytes=ahead) for ahead in AHEAD_BYTES), *STREAMS, BLOCK)

Progress = Callable[[str], None]
Times = dict[tuple[Schedule, int], float]


@dataclass(frozen=True)
class Stage:
    """What a stage found: the schedule so far, and of each value of a choice its time over the default's."""

    choice: str
    tuned: Tuned
    ratios: tuple[tuple[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        ratios = [{"value": value, "of_default": round(ratio, 4)} for value, ratio in self.ratios]
        return {"choice": self.choice, "ratios": ratios, **asdict(self.tuned)}


def isa_to_tune(target: str) -> Isa:
    """Return the instruction set that a target's name means.

    Raises: UnknownOption for a name that is none; TargetRefused if this machine does not run it.
    """
    bound = named_target(target)
    if bound.target.kind != "cpu":
        raise TargetRefused(
            f"kernels for '{target}' have no schedule to be measured; choose cpu, or cpu:DEVICE",
            hint="those for CUDA and ROCm take their tiles from a table that comes with tokc",
        )
    here = {isa.name: isa for isa in runnable_isas()}
    if bound.device not in here:
        raise TargetRefused(
            f"this machine does not run '{bound.name}'; choose from cpu:{', cpu:'.join(here)}",
            hint="run `tokc tune-kernels` on the machine that the artifact is for",
        )
    return here[bound.device]


def search(
    isa: Isa,
    *,
    threads: int | None = None,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    rounds: int = ROUNDS,
    weight_bytes: int = WEIGHT_BYTES,
    progress: Progress = lambda _: None,
) -> Iterator[Stage]:
    """Yield what each stage finds, the last with the whole schedule; int4 weights with scales of 8 bits.

    Raises: TargetRefused if the compiler fails.
    """
    tuned = Tuned.here(isa.name, threads)
    progress(f"compile {len(CANDIDATES)} candidates for {isa.name}")
    kernels = [_kernel(isa, shape, schedule) for shape in shapes for schedule in CANDIDATES]
    with KernelTimer(kernels, isa, tuned.threads, weight_bytes) as timer:
        race = Race(timer, shapes, rounds, progress)
        times = race.times(CANDIDATES[: len(AHEAD_BYTES)], AHEAD_ROWS)
        ratios = {
            each.ahead_bytes: _ratio(times, each, AHEAD_ROWS) for each in CANDIDATES[: len(AHEAD_BYTES)]
        }
        tuned, stage = _chosen(tuned, "ahead_bytes", ratios)
        yield stage
        times = race.times(STREAMS, STREAM_ROWS)
        ratios = {each.tiles_at_once: _ratio(times, each, STREAM_ROWS, STREAMS[0]) for each in STREAMS}
        tuned, stage = _chosen(tuned, "tiles_at_once", ratios)
        yield stage
        if isa.amx:  # whose matrix unit takes the place of the kernel for many rows
            return
        stream = replace(DEFAULT_SCHEDULE, tiles_at_once=tuned.schedule.tiles_at_once, block_rows=NEVER)
        times = race.times((stream, BLOCK), BLOCK_ROWS)
        yield _chosen(tuned, "block_rows", _by_first_block(times, stream))[1]


class Race:
    """Measures candidates in turns."""

    def __init__(
        self, timer: KernelTimer, shapes: Sequence[tuple[int, int]], rounds: int, progress: Progress
    ) -> None:
        """Keep the timer, which has the kernels of every candidate and shape."""
        self._timer, self._shapes, self._rounds, self._progress = timer, shapes, rounds, progress
        self._kernels = {((each.n, each.k), each.schedule): each for each in timer.kernels}

    def times(self, candidates: Sequence[Schedule], row_counts: Sequence[int]) -> Times:
        """Return the least seconds of a call of each candidate at each number of rows, summed over shapes."""
        found: Times = {}
        for rows in row_counts:
            for shape in self._shapes:
                self._progress(f"step of {rows} rows, {shape[0]}x{shape[1]}")
                kernels = {each: self._kernels[shape, each] for each in candidates}
                self._require_same_bits(kernels.values(), rows, shape)
                taken = [
                    {s: self._timer.seconds(k, rows) for s, k in kernels.items()} for _ in range(self._rounds)
                ]
                for each in candidates:
                    least = min(one[each] for one in taken)
                    found[each, rows] = found.get((each, rows), 0.0) + least
        return found

    def _require_same_bits(self, kernels: Any, rows: int, shape: tuple[int, int]) -> None:
        expected = self._timer.result(self._kernels[shape, DEFAULT_SCHEDULE], rows).tobytes()
        for kernel in kernels:
            same = self._timer.result(kernel, rows).tobytes() == expected
            assert same, f"{kernel.symbol} differs from the default at {rows} rows"


@dataclass(frozen=True)
class Candidate(QuantLinear):
    """A kernel beside others of its shape in one library."""

    @property
    def symbol(self) -> str:
        """Return the C symbol, which says the schedule."""
        chosen = self.schedule
        return f"{super().symbol}_{chosen.ahead_bytes}_{chosen.tiles_at_once}_{chosen.block_rows}"


def _kernel(isa: Isa, shape: tuple[int, int], schedule: Schedule) -> Candidate:
    n, k = shape
    return Candidate(isa, n, k, 4, symmetric=True, bias=False, y_stride=n, scale_bits=8, schedule=schedule)


def _ratio(
    times: Times, candidate: Schedule, row_counts: Sequence[int], default: Schedule = DEFAULT_SCHEDULE
) -> float:
    """Return the mean over row counts of a candidate's time over the default's."""
    return fmean(times[candidate, rows] / times[default, rows] for rows in row_counts)


def _by_first_block(times: Times, stream: Schedule) -> dict[int, float]:
    """Return for each number of rows, from which on weights are unpacked, the time over the default's."""

    def of(first: int) -> float:
        taken = (times[BLOCK if rows >= first else stream, rows] for rows in BLOCK_ROWS)
        usual = (times[BLOCK if rows >= DEFAULT_SCHEDULE.block_rows else stream, rows] for rows in BLOCK_ROWS)
        return fmean(each / default for each, default in zip(taken, usual, strict=True))

    return {first: of(first) for first in BLOCK_ROWS}


def _chosen(tuned: Tuned, choice: str, ratios: dict[int, float]) -> tuple[Tuned, Stage]:
    """Take the value of the least ratio, if it is less than the default's by more than the margin."""
    best = min(ratios, key=lambda value: ratios[value])
    if ratios[best] < 1 - MARGIN:
        tuned = replace(tuned, schedule=replace(tuned.schedule, **{choice: best}))
    return tuned, Stage(choice, tuned, tuple(ratios.items()))
