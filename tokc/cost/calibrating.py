"""Fits how near the kernels of artifacts come to this machine's roofs, from a handful of real steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import tokc
from tokc.cost.calibration import Calibration, StepError
from tokc.cost.devices import CpuWatch, Host
from tokc.cost.efficiency import Amounts, Efficiencies, amounts_of, fit, kind_of
from tokc.cost.launch_work import LaunchWork
from tokc.cost.peaks import probed
from tokc.cost.profile import Roofs
from tokc.cost.profiling import TimesKernels
from tokc.cost.step_model import Step
from tokc.cost.step_timing import TimedStep, timed_steps, watching
from tokc.errors import TokcError, UnknownOption
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine

# Batches by context; the longest are few, since their cache must be filled first.
CONTEXTS = {32: (1, 4, 8, 16), 256: (1, 2, 6, 12, 16), 1024: (1, 4)}
DECODES = tuple(Step(batch, context) for context, batches in CONTEXTS.items() for batch in batches)
CHUNKS = tuple(Step(1, tokens, tokens) for tokens in (16, 32, 64, 128, 256))
ROUNDS = 4
ENGINE_BATCHES, ENGINE_PROMPT, ENGINE_OUTPUT, ENGINE_REPETITIONS = (1, 16), 16, 24, 3

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Sample:
    """Launches of the same work in one step; `seconds` are of one of them, measured."""

    step: Step
    kind: str
    work: LaunchWork
    rows: str
    count: int
    seconds: float


@dataclass(frozen=True)
class _Timing:
    """What was timed of one artifact."""

    name: str
    host: Host
    threads: int
    samples: tuple[_Sample, ...]
    step_s: float
    gaps_s: Mapping[int, float]


def calibrate(artifacts: Sequence[Path], seconds: float, threads: int | None, say: Progress) -> Calibration:
    """Time steps of the artifacts, about `seconds` each beside loading, and fit one set of efficiencies.

    Raises: UnknownOption if an artifact is not for a CPU, or they are for different kinds of CPUs.
    """
    manifests = (Artifact.open(path, verify=False).manifest for path in artifacts)
    targets = {(one.target.kind, one.target.device) for one in manifests}
    if len(targets) > 1 or any(kind != "cpu" for kind, _ in targets):
        raise UnknownOption(
            "a calibration is of artifacts for one kind of CPU; these are for "
            + ", ".join(sorted(f"{kind}:{device}" for kind, device in targets)),
            hint="build them here, with --target cpu",
        )
    watch = CpuWatch()
    timings = [_time(path, seconds, threads, say) for path in artifacts]
    host = _best([timing.host for timing in timings])
    efficiencies = _fit(timings, Roofs.of(host))
    return Calibration(
        device=next(iter(targets))[1],
        threads=timings[0].threads,
        host=host,
        artifacts=tuple(timing.name for timing in timings),
        efficiencies=efficiencies,
        steps=tuple(_errors(timings, Roofs.of(host), efficiencies)),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        foreign_cpu=watch.foreign_share(),
    )


def _time(path: Path, seconds: float, threads: int | None, say: Progress) -> _Timing:
    say(f"load {path.name}")
    with tokc.load(path, threads=threads) as engine:
        executor = engine.executor
        if not isinstance(executor, TimesKernels):
            raise TokcError(f"the kernels of '{path}' cannot be timed", hint="take an artifact for this CPU")
        say(f"time the engine on {path.name}")
        gaps = {batch: _gap(engine, batch) for batch in ENGINE_BATCHES}
        say(f"fill the cache of {path.name}")
        chunks = tuple(step for step in CHUNKS if step.tokens <= executor.max_tokens)
        timed = timed_steps(engine, DECODES, chunks)
        say(f"time {len(timed)} steps of {path.name}")
        hosts: list[Host] = []
        until_s = time.perf_counter() + seconds
        while len(hosts) < ROUNDS or time.perf_counter() < until_s:
            hosts.append(probed(path, executor))
            for one in timed:
                one.run(executor)
        samples = tuple(sample for one in timed for sample in _samples(executor.plan, one))
        outside = [one.outside_s() for one in timed if one.step.tokens == 1]
        return _Timing(path.name, _best(hosts), executor.threads, samples, float(np.median(outside)), gaps)


def _gap(engine: Engine, batch: int) -> float:
    random = np.random.default_rng(batch)
    with watching(engine) as watch:
        for _ in range(ENGINE_REPETITIONS):
            prompts = random.integers(engine.executor.vocab_size, size=(batch, ENGINE_PROMPT)).tolist()
            engine.generate_all(prompts, max_tokens=ENGINE_OUTPUT, ignore_eos=True)
    return min(watch.gaps(batch))


def _best(hosts: Sequence[Host]) -> Host:
    """Return a host with the highest rates of all: others only ever lower them."""
    rates = ("read_bytes_per_s", "f32_flops_per_s", "int8_flops_per_s")
    return replace(hosts[0], **{name: max(getattr(host, name) for host in hosts) for name in rates})


def _samples(plan: Mapping[str, Any], timed: TimedStep) -> list[_Sample]:
    seconds = timed.launches_s()
    groups: dict[tuple[str, str, LaunchWork], list[int]] = {}
    for at, launch in enumerate(plan["launches"]):
        key = launch["op"], launch["rows"], LaunchWork.from_json(launch["work"])
        groups.setdefault(key, []).append(at)
    return [
        _Sample(timed.step, kind_of(op, work), work, rows, len(at), float(seconds[at].mean()))
        for (op, rows, work), at in groups.items()
    ]


def _amounts(sample: _Sample, roofs: Roofs) -> Amounts:
    size = sample.step.size(sample.work.window)
    return amounts_of(sample.work, size.rows[sample.rows], size.attended, size.cached, roofs)


def _fit(timings: Sequence[_Timing], roofs: Roofs) -> Efficiencies:
    by_kind: dict[str, list[_Sample]] = {}
    for sample in (sample for timing in timings for sample in timing.samples):
        by_kind.setdefault(sample.kind, []).append(sample)
    kinds = tuple(
        fit(kind, [_amounts(one, roofs) for one in samples], [one.seconds for one in samples])
        for kind, samples in by_kind.items()
    )
    few, many = ENGINE_BATCHES
    gaps = {batch: float(np.mean([timing.gaps_s[batch] for timing in timings])) for batch in ENGINE_BATCHES}
    sequence_s = max(0.0, (gaps[many] - gaps[few]) / (many - few))
    return Efficiencies(
        kinds=kinds,
        source=f"fitted to steps of {', '.join(timing.name for timing in timings)}",
        step_s=max(0.0, float(np.mean([timing.step_s for timing in timings]))),
        engine_s=max(0.0, gaps[few] - few * sequence_s),
        sequence_s=sequence_s,
    )


def _errors(timings: Sequence[_Timing], roofs: Roofs, found: Efficiencies) -> list[StepError]:
    errors = []
    for timing in timings:
        by_step: dict[Step, list[_Sample]] = {}
        for sample in timing.samples:
            by_step.setdefault(sample.step, []).append(sample)
        for step, samples in by_step.items():
            measured = sum(one.count * one.seconds for one in samples)
            fitted = sum(one.count * found.of(one.kind).seconds(_amounts(one, roofs)) for one in samples)
            errors.append(
                StepError(
                    timing.name, step.sequences, step.tokens, step.context, measured, fitted / measured - 1
                )
            )
    return errors
