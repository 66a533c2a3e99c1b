"""Measure tokc beside llama.cpp on the same weights, in turns: `python -m bench --out out/bench`."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import models
from bench.foreign import Measurement, run
from bench.llamacpp_environment import interpreter
from bench.spans import Span

SCHEMA_VERSION = 1
MOST_FOREIGN = 0.1
ATTEMPTS = 3
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

PREFILL, DECODE, DECODE_16 = Span(0, 512), Span(1, 64), Span(16, 24)
ROWS = {
    "decode_b1_smollm2": ("smollm2-q4_0", DECODE),
    "prefill512_smollm2": ("smollm2-q4_0", PREFILL),
    "decode_b16_smollm2": ("smollm2-q4_0", DECODE_16),
    "decode_b1_smollm2_q4_1": ("smollm2-q4_1", DECODE),
    "prefill512_smollm2_q4_1": ("smollm2-q4_1", PREFILL),
    "decode_b16_smollm2_q4_1": ("smollm2-q4_1", DECODE_16),
    "decode_b1_1b": ("random-1b-q4_0", Span(1, 24)),
    "prefill512_1b": ("random-1b-q4_0", Span(0, 512, repeats=2)),
}


@dataclass
class Row:
    """The rounds of one row, by program."""

    tokc: list[Measurement] = field(default_factory=list)
    llamacpp: list[Measurement] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Return the median over rounds of tokc's tokens a second over llama.cpp's of the same round."""
        pairs = zip(self.tokc, self.llamacpp, strict=True)
        return statistics.median(best(ours) / best(theirs) for ours, theirs in pairs)

    def to_json(self) -> dict[str, Any]:
        """Return both sides' figures."""
        return {"ratio": self.ratio, "tokc": summary(self.tokc), "llamacpp": summary(self.llamacpp)}


def best(measurement: Measurement) -> float:
    """Return the fastest repeat: the others were slowed by something else."""
    return max(measurement.result["tokens_per_s"])


def summary(rounds: list[Measurement]) -> dict[str, Any]:
    """Return the figures of one side over its rounds."""
    rates = [best(measurement) for measurement in rounds]
    return {
        "tokens_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "repeats": [measurement.result["tokens_per_s"] for measurement in rounds],
        "load_s": statistics.median(measurement.result["load_s"] for measurement in rounds),
        "rss_mb": max(measurement.result["rss_mb"] for measurement in rounds),
        "foreign_share": [round(measurement.foreign_share, 3) for measurement in rounds],
    }


def quietest(command: list[str], environment: dict[str, str]) -> Measurement:
    """Measure again while other processes are busy, at most three times; returns the quietest."""
    tries: list[Measurement] = []
    while len(tries) < ATTEMPTS and (not tries or tries[-1].foreign_share > MOST_FOREIGN):
        tries.append(run(command, environment))
    return min(tries, key=lambda measurement: measurement.foreign_share)


@dataclass(frozen=True)
class Bench:
    """Where models and artifacts lie, and the other program's interpreter."""

    out: Path
    llamacpp: str
    threads: int
    keep: bool

    def model(self, name: str) -> Path:
        """Return a model's GGUF file, made if it is not there."""
        folder = self.out / "models"
        folder.mkdir(parents=True, exist_ok=True)
        makers: dict[str, Callable[[], Path]] = {
            "smollm2-q4_0": lambda: models.smollm2_q4_0(folder, self.llamacpp),
            "smollm2-q4_1": models.smollm2_q4_1,
            "random-1b-q4_0": lambda: models.random_1b_q4_0(folder),
        }
        return makers[name]()

    def artifact(self, name: str) -> Path:
        """Return a model's artifact, built now unless --keep found one."""
        path = self.out / "models" / f"{name}.tokc"
        if not (self.keep and path.exists()):
            print(f"build {path}", flush=True)
            run([sys.executable, "-m", "bench.tokc_side", "build", str(self.model(name)), str(path)])
        return path

    def measure(self, name: str, rounds: int) -> Row:
        """Run both sides in turns."""
        model, span = ROWS[name]
        arguments = ["--sequences", span.sequences, "--tokens", span.tokens, "--repeats", span.repeats]
        options = [str(word) for word in [*arguments, "--threads", self.threads]]
        paths = str(self.out / "models" / f"{model}.tokc"), str(self.model(model))
        row = Row()
        for _ in range(rounds):
            ours = [sys.executable, "-m", "bench.tokc_side", paths[0], *options]
            theirs = [self.llamacpp, "-m", "bench.llamacpp_side", paths[1], *options]
            row.tokc.append(quietest(ours, HUGE_PAGES))
            row.llamacpp.append(quietest(theirs, HUGE_PAGES))
        return row


def machine() -> dict[str, Any]:
    """Return what the figures hold for."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
    }


def commit() -> str:
    """Return the commit that is measured, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def table_line(name: str, row: Row) -> str:
    """Return a row of the terminal's table."""
    ours, theirs = summary(row.tokc), summary(row.llamacpp)
    cells = [f"{name:26}{row.ratio:7.2f}"]
    for side in (ours, theirs):
        rate = side["tokens_per_s"]
        cells.append(f"{rate['median']:9.1f} ({rate['min']:.0f}-{rate['max']:.0f})".ljust(24))
        cells.append(f"{side['rss_mb']:6.0f} MB {side['load_s']:5.2f} s load  ")
    return "".join(cells)


def main() -> None:
    """Measure the rows that were asked for; write cpu.json and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--llamacpp", help="a Python with llama-cpp-python, instead of building one")
    parser.add_argument("--keep", action="store_true", help="measure the artifacts of the last run")
    asked = parser.parse_args()
    bench = Bench(asked.out, asked.llamacpp or interpreter(), asked.threads, asked.keep)
    for name in dict.fromkeys(ROWS[row][0] for row in asked.rows):
        bench.artifact(name)
    print(f"{'row':26}{'ratio':>7}{'tokc tok/s':>14}{'llama.cpp tok/s':>49}", flush=True)
    rows = {}
    for name in asked.rows:
        rows[name] = bench.measure(name, asked.rounds)
        print(table_line(name, rows[name]), flush=True)
        write(bench, rows)


def write(bench: Bench, rows: dict[str, Row]) -> None:
    """Write what was measured so far."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "ratios": {name: row.ratio for name, row in rows.items()},
        "rows": {name: row.to_json() for name, row in rows.items()},
        "threads": bench.threads,
        "settings": "f16 cache and glibc.malloc.hugetlb=1 on both sides",
        "machine": machine(),
        "commit": commit(),
    }
    (bench.out / "cpu.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
