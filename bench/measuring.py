"""Runs programs in turns, each in a process of its own; models and artifacts are made when first wanted."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import models
from bench.foreign import Measurement, run
from bench.peers.environments import FOLDER, interpreter, tokc_interpreter
from bench.programs import LEFT_OUT, TARGETS, TOKC, Program
from bench.results import Figures
from bench.rows import ColdStart, InstallSize, Row, Scaling
from bench.spans import Span

MOST_FOREIGN = 0.1
ATTEMPTS = 3
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
THREADS = 1, 2
# What made the environment, not what runs in it.
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")
FAILURES = (RuntimeError, subprocess.CalledProcessError, OSError)


@dataclass
class Bench:
    """Where models and artifacts lie, and how programs run."""

    out: Path
    programs: list[Program]
    threads: int
    isa: str
    keep: bool
    built: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Return where models lie."""
        folder = self.out / "models"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def measure(self, row: Row, rounds: int) -> Figures:
        """Run all programs in turns; after the first round, those that may be the best."""
        figures = Figures(row, left_out=dict(LEFT_OUT[self.isa]))
        running = []
        for program in self.programs:
            if row.kind in program.lacks:
                figures.left_out[program.name] = program.lacks[row.kind]
            else:
                running.append(program)
        for at in range(1 if isinstance(row.what, InstallSize) else rounds):
            if at == 1:
                screened = figures.screened()
                running = [program for program in running if program.name not in screened]
            for program in running:
                if program.name not in figures.errors:
                    self._measure_once(figures, program)
        return figures

    def _measure_once(self, figures: Figures, program: Program) -> None:
        try:
            figures.add(program.name, self._figure(program, figures.row))
        except FAILURES as error:
            figures.errors[program.name] = str(error)
            print(f"{program.name}: {error}", file=sys.stderr, flush=True)

    def _figure(self, program: Program, row: Row) -> Measurement:
        match row.what:
            case InstallSize():
                self._runtime(program)
                size = install_bytes(FOLDER / program.environment)
                return Measurement({"value": size, "repeats": [size]}, 0.0, 1.0)
            case ColdStart(processes):
                path = self.model(program, row.model)
                words = [
                    self._runtime(program),
                    "-P",
                    "bench/cold_start.py",
                    program.name,
                    str(path),
                    str(self.threads),
                ]
                return together([self._run(program, words) for _ in range(processes + 1)][1:])
            case Scaling(span):
                return scaling([self._span(program, row.model, span, threads) for threads in THREADS])
            case Span():
                return self._span(program, row.model, row.what, self.threads)

    def _span(self, program: Program, model: str, span: Span, threads: int) -> Measurement:
        python = sys.executable if program is TOKC else interpreter(program.environment)
        path = self.model(program, model)
        return self._run(program, [python, "-m", program.module, str(path), str(threads), *span.arguments()])

    def _run(self, program: Program, command: list[str]) -> Measurement:
        """Measure again while other processes are busy, at most three times; returns the quietest."""
        tries: list[Measurement] = []
        while len(tries) < ATTEMPTS and (not tries or tries[-1].foreign_share > MOST_FOREIGN):
            tries.append(run(command, {**HUGE_PAGES, **program.variables}))
        return min(tries, key=lambda measurement: measurement.foreign_share)

    def _runtime(self, program: Program) -> str:
        return tokc_interpreter() if program is TOKC else interpreter(program.environment)

    def model(self, program: Program, name: str) -> Path:
        """Return what `program` loads of a model, made if it is not there."""
        gguf = self._gguf(name)
        match program.form:
            case "gguf":
                return gguf
            case "tokc":
                return self._artifact(name, gguf)
            case form:
                return self._exported(name, form, gguf)

    def _gguf(self, name: str) -> Path:
        makers: dict[str, Callable[[], Path]] = {
            "smollm2-q4_0": lambda: models.smollm2_q4_0(self.folder, interpreter("llamacpp")),
            "random-1b-q4_0": lambda: models.random_1b_q4_0(self.folder),
        }
        return makers[name]()

    def _artifact(self, name: str, gguf: Path) -> Path:
        """Return the artifact, built once a run unless --keep found one."""
        path = self.folder / (f"{name}.tokc" if self.isa == "native" else f"{name}.{self.isa}.tokc")
        if path not in self.built and not (self.keep and path.exists()):
            print(f"build {path}", flush=True)
            run([sys.executable, "-m", "bench.tokc_side", "build", str(gguf), str(path), TARGETS[self.isa]])
        self.built.add(path)
        return path

    def _exported(self, name: str, form: str, gguf: Path) -> Path:
        path = self.folder / f"{name}.{form}"
        if not path.exists():
            source = gguf if form == "folder" else self._exported(name, "folder", gguf)
            print(f"export {path}", flush=True)
            python = interpreter("export-openvino" if form == "openvino" else "export")
            run([python, "-m", "bench.peers.export", form, str(source), str(path)])
        return path


def scaling(by_threads: list[Measurement]) -> Measurement:
    """Return how many times the first's figure the last one reached."""
    one, two = by_threads
    figures = [float(each.result["value"]) for each in by_threads]
    result = {"value": figures[1] / figures[0], "repeats": figures}
    if "read_bytes_per_s" in two.result:
        result["read_bytes_per_s_by_threads"] = [each.result["read_bytes_per_s"] for each in by_threads]
    return Measurement(result, one.foreign_cpu_s + two.foreign_cpu_s, one.wall_s + two.wall_s)


def together(processes: list[Measurement]) -> Measurement:
    """Return the least figure of several processes."""
    figures = [float(each.result["value"]) for each in processes]
    foreign_cpu_s, wall_s = sum(p.foreign_cpu_s for p in processes), sum(p.wall_s for p in processes)
    return Measurement({"value": min(figures), "repeats": figures}, foreign_cpu_s, wall_s)


def install_bytes(environment: Path) -> int:
    """Return the bytes of all files that an environment holds, without what installed them."""
    total = 0
    (packages,) = environment.glob("lib/python*/site-packages")
    for entry in packages.iterdir():
        if entry.name.startswith(INSTALLERS):
            continue
        for folder, _, files in os.walk(entry):
            total += sum((Path(folder) / file).lstat().st_size for file in files)
        if entry.is_file():
            total += entry.lstat().st_size
    return total
