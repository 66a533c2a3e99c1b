"""Decoding measured over batch and context, through the engine, to hold a prediction against.

The prompts of a cell are the beginnings of the same sequences, so that each is read once for all cells, and
then found in the prefix cache. Cells go round; of each the least interval between two steps is kept, since
other programs can only lengthen it, with the rate of memory as probed just before and after: where others
share the machine, it is another a minute later.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import tokc
from tokc.cost.devices import CpuWatch, ReadsMemory
from tokc.cost.step_timing import StepWatch, watching
from tokc.errors import TokcError
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.manifest import Manifest

BATCHES, CONTEXTS = (1, 2, 4, 8, 16), (128, 1024, 4096)
OUTPUT_TOKENS = 12
ROOM_TOKENS = 64  # of a sequence, beside the context: its answer, and the page that it ends in


@dataclass(frozen=True)
class GridCell:
    """What was measured at a batch size and context.

    `token_s` is the least time from one token of every sequence to the next, `median_s` the median of it.
    `read_bytes_per_s` is the better of the rates of memory right before and right after that least.
    """

    batch: int
    context: int
    token_s: float
    median_s: float
    steps: int
    read_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Grid:
    """A grid of one artifact on this machine; `foreign_cpu` as in a bench."""

    artifact: str
    manifest_sha256: str
    measured_at: str
    threads: int
    cells: tuple[GridCell, ...]
    foreign_cpu: float = 0.0
    schema_version: int = 1


@dataclass
class _Cell:
    batch: int
    context: int
    rounds: list[tuple[list[float], float | None]] = field(default_factory=list)

    def result(self) -> GridCell:
        times = [one for intervals, _ in self.rounds for one in intervals]
        intervals, rate = min(self.rounds, key=lambda one: min(one[0]))
        return GridCell(self.batch, self.context, min(intervals), float(np.median(times)), len(times), rate)


def measure_grid(
    artifact: Path, manifest_sha256: str, rounds: int, threads: int | None, say: Callable[[str], None]
) -> Grid:
    """Measure every batch of `BATCHES` at every context of `CONTEXTS`, each once a round.

    Raises: TokcError if the artifact's context is shorter, or it takes fewer sequences at once.
    """
    manifest = Artifact.open(artifact, verify=False).manifest
    tokens = max(CONTEXTS) + ROOM_TOKENS
    for needed, limit, what in (
        (tokens, manifest.limits.context, "tokens of context"),
        (max(BATCHES), manifest.limits.max_rows, "sequences"),
    ):
        if needed > limit:
            raise TokcError(f"the grid needs {needed} {what}, '{artifact}' has room for {limit}")
    say(f"load {artifact.name}")
    kv_bytes = math.ceil(max(BATCHES) * tokens * manifest.kv.bytes_per_token)
    watch = CpuWatch()
    with tokc.load(artifact, threads=threads, kv_bytes=kv_bytes) as engine:
        cells = _measure(engine, _memory_probe(engine, manifest), rounds, say)
        used = getattr(engine.executor, "threads", threads or 0)
    return Grid(
        artifact=artifact.name,
        manifest_sha256=manifest_sha256,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=used,
        cells=tuple(one.result() for one in cells),
        foreign_cpu=watch.foreign_share(),
    )


def _measure(
    engine: Engine, probe: Callable[[], float | None], rounds: int, say: Callable[[str], None]
) -> Sequence[_Cell]:
    random = np.random.default_rng(0)
    prompts = random.integers(engine.executor.vocab_size, size=(max(BATCHES), max(CONTEXTS))).tolist()
    cells = [_Cell(batch, context) for context in CONTEXTS for batch in BATCHES]
    for index in range(max(BATCHES)):
        say(f"prompt {index + 1} of {max(BATCHES)}, {max(CONTEXTS)} tokens")
        engine.generate_all([prompts[index]], max_tokens=1, ignore_eos=True)
    before = probe()
    for turn in range(rounds):
        for cell in cells:
            say(f"round {turn + 1} of {rounds}: batch {cell.batch}, context {cell.context}")
            intervals, after = _intervals(engine, prompts, cell), probe()
            cell.rounds.append((intervals, before if after is None or before is None else max(before, after)))
            before = after
    return cells


def _memory_probe(engine: Engine, manifest: Manifest) -> Callable[[], float | None]:
    """Return what measures the rate at which the engine's threads read as much as the weights, if it can."""
    executor, weights = engine.executor, max(file.bytes for file in manifest.files.values())
    if not isinstance(executor, ReadsMemory):
        return lambda: None
    return lambda: executor.read_bandwidth(weights)


def _intervals(engine: Engine, prompts: Sequence[list[int]], cell: _Cell) -> list[float]:
    start = cell.context - OUTPUT_TOKENS // 2
    with watching(engine) as watch:
        engine.generate_all(
            [prompt[:start] for prompt in prompts[: cell.batch]], max_tokens=OUTPUT_TOKENS, ignore_eos=True
        )
    return _decoding(watch, cell)


def _decoding(watch: StepWatch, cell: _Cell) -> list[float]:
    found = watch.intervals(cell.batch)
    if not found:
        raise TokcError(
            f"the engine never decoded {cell.batch} sequences of {cell.context} tokens together",
            hint="the cache may be too small",
        )
    return found
