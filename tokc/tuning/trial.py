"""One trial: build, evaluate and measure a candidate, each in a process of its own.

So a trial measures what a user's own commands would, its memory is given back, and one that fails is a
failed trial and no more.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokc.cost.gates import METRICS, Gate, Judged
from tokc.errors import TokcError
from tokc.report.collect import bench_path, load_path
from tokc.report.gate_figures import Pricing, figures_of, judge_all
from tokc.report.quality import evaluation_path

PROGRAM = "from tokc.cli.entry import main; main()"
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Setting:
    """What all trials share: the model, where it will run, and what is asked of a build of it."""

    model: Path
    target: str
    context: int | None
    objective: Gate
    maximize: bool
    limits: tuple[Gate, ...]
    pricing: Pricing
    eval_tokens: int

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Return all that is to be known of a trial."""
        return (self.objective, *self.limits)

    def asks(self, source: str) -> bool:
        """Return whether anything asked of a trial comes from `source`."""
        return any(METRICS[gate.metric].source == source for gate in self.gates)


@dataclass(frozen=True)
class Outcome:
    """What a trial found: the objective's figure, and each limit beside its figure; worst batch first.

    `objective` is None where a limit of quality is broken: such a build is not measured.
    """

    objective: float | None
    judged: tuple[Judged, ...]

    @property
    def feasible(self) -> bool:
        """Return whether no limit is broken; what noise hides counts as kept."""
        return all(one.verdict != "not met" for one in self.judged)

    @property
    def excess(self) -> dict[str, float]:
        """Return by which share of each limit it is broken, at most 0 where it is kept."""
        return {
            one.gate: max(one.excess or 0.0, 1e-6)
            if one.verdict == "not met"
            else min(one.excess or 0.0, 0.0)
            for one in self.judged
        }


class Finished(NamedTuple):
    """A trial that ended on a machine: what it found, or None and the problem that it failed with."""

    number: int
    machine: str
    outcome: Outcome | None
    problem: str = ""


def attempt(
    setting: Setting, number: int, pipeline: str, artifact: Path, *, machine: str, threads: int | None = None
) -> Finished:
    """Build a candidate at `artifact`, where it stays, judge its quality and measure it, here.

    `machine` is what this one is called; `threads` compute, by default one a core.
    """
    try:
        build(setting, pipeline, artifact)
        judged = quality(setting, artifact, threads)
        if any(one.verdict == "not met" for one in judged):
            return Finished(number, machine, Outcome(None, judged))
        return Finished(number, machine, outcome(setting, artifact, threads))
    except TokcError as error:
        return Finished(number, machine, None, error.problem)


def build(setting: Setting, pipeline: str, out: Path) -> None:
    """Build a candidate.

    Raises: TokcError with what the build said.
    """
    options = [
        "--target",
        setting.target,
        "--passes",
        pipeline,
        "--no-check",
        "--no-cache",
        "--out",
        str(out),
    ]
    context = [] if setting.context is None else ["--context", str(setting.context)]
    _run("build", str(setting.model), *options, *context, "--json")


def quality(setting: Setting, artifact: Path, threads: int | None = None) -> tuple[Judged, ...]:
    """Evaluate a build and return the limits on its quality, judged; none where none is asked.

    Raises: TokcError with what the evaluation said.
    """
    limits = tuple(gate for gate in setting.limits if METRICS[gate.metric].source == "ledger")
    if not setting.asks("ledger"):
        return ()
    options = ["--tokens", str(setting.eval_tokens), *_threaded(threads)]
    _run("eval", str(artifact), "--reference", str(setting.model), *options, "--json")
    return judge_all(limits, figures_of(artifact, setting.pricing))


def outcome(setting: Setting, artifact: Path, threads: int | None = None) -> Outcome:
    """Measure a build and return what it is worth.

    Raises: TokcError with what the measurement said.
    """
    batches = {gate.batch for gate in setting.gates if METRICS[gate.metric].source == "bench" and gate.batch}
    if setting.asks("bench"):
        _run("bench", str(artifact), *_repeated("--batch", batches), *_threaded(threads), "--json")
    clients = {gate.batch for gate in setting.gates if METRICS[gate.metric].source == "load" and gate.batch}
    if setting.asks("load"):
        _run("load-test", str(artifact), *_repeated("--concurrency", clients), *_threaded(threads), "--json")
    figures = figures_of(artifact, setting.pricing)
    found = [one.figure for one in figures.find(setting.objective)]
    return Outcome(min(found) if setting.maximize else max(found), judge_all(setting.limits, figures))


def clear(artifact: Path) -> None:
    """Remove a build and what was measured of it."""
    shutil.rmtree(artifact, ignore_errors=True)
    for path in (bench_path(artifact), load_path(artifact), evaluation_path(artifact)):
        path.unlink(missing_ok=True)


def _threaded(threads: int | None) -> list[str]:
    return [] if threads is None else ["--threads", str(threads)]


def _repeated(option: str, values: set[int]) -> list[str]:
    return [word for value in sorted(values) for word in (option, str(value))]


def _run(*arguments: str) -> dict[str, object]:
    """Run a command of ours and return its JSON."""
    command: Sequence[str] = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        wrong = (
            [line for line in said if line.startswith("error:")] or said[-1:] or [f"exit {done.returncode}"]
        )
        raise TokcError(f"`tokc {arguments[0]}` failed: {wrong[0].removeprefix('error: ')}")
    found: dict[str, object] = json.loads(done.stdout)
    return found
