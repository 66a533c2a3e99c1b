"""Measure tokc beside its peers on the same weights, in turns: `python -m bench --out out/bench`."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.measuring import HUGE_PAGES, Bench
from bench.peers.environments import versions
from bench.programs import PROGRAMS, TOKC
from bench.results import SCREEN, Figures, conclusions, summary
from bench.rows import ROWS

SCHEMA_VERSION = 2
ONE_LINE = 100


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


def table_lines(name: str, figures: Figures) -> str:
    """Return a row of the terminal's table: a line a program, the best peer marked."""
    ratio = figures.to_json()["ratio"]
    lines = [f"{name}: " + ("no ratio" if ratio is None else f"{ratio:.2f} x {figures.best_peer}")]
    for program, rounds in figures.rounds.items():
        found = summary(rounds)
        memory = f"{found['rss_mb']:7.0f} MB {found['load_s']:6.2f} s load" if "rss_mb" in found else ""
        spread = f"({found['min']:.4g}-{found['max']:.4g})"
        lines.append(f"  {program:16}{found['median']:12.4g} {figures.row.unit} {spread:22}{memory}")
    lines += [f"  {program:16}failed: {error[-ONE_LINE:]!r}" for program, error in figures.errors.items()]
    return "\n".join(lines)


def content(bench: Bench, rows: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Return the file."""
    return {
        "schema_version": SCHEMA_VERSION,
        **conclusions(rows),
        "rows": rows,
        "isa": bench.isa,
        "settings": {
            "environment": HUGE_PAGES,
            "rounds": rounds,
            "screening": f"peers more than {SCREEN:.0%} behind the best one in the first round run once",
            "weights": "4 bits, groups of 32; CTranslate2 int8, torch bfloat16",
            "cache": "f16; openvino u8 and f16, CTranslate2 f32, torch bfloat16",
        },
        "versions": versions([program.environment for program in bench.programs if program is not TOKC]),
        "machine": machine(),
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Write aside, then rename."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(path)


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="some of the peers, by name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--isa", choices=PROGRAMS, default="native", help="hold all programs to an instruction set"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the last run's artifacts, and its other rows"
    )
    asked = parser.parse_args()
    known = [program.name for program in PROGRAMS[asked.isa] if program is not TOKC]
    for name in asked.peers or []:
        if name not in known:
            parser.error(f"unknown peer '{name}'; choose from {', '.join(known)}")
    return asked


def main() -> None:
    """Measure the rows that were asked for; write cpu.json and print the table as rows finish."""
    asked = arguments()
    wanted = [p for p in PROGRAMS[asked.isa] if p is TOKC or asked.peers is None or p.name in asked.peers]
    bench = Bench(asked.out, wanted, asked.threads, asked.isa, asked.keep)
    path = asked.out / ("cpu.json" if asked.isa == "native" else f"cpu-{asked.isa}.json")
    rows: dict[str, Any] = {}
    if asked.keep and path.exists():
        earlier = json.loads(path.read_text())
        if earlier["schema_version"] == SCHEMA_VERSION:
            rows = {name: row for name, row in earlier["rows"].items() if name in ROWS}
    for name in asked.rows:
        figures = bench.measure(ROWS[name], asked.rounds)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows[name] = {**figures.to_json(), "commit": commit(), "measured_at": now, "threads": bench.threads}
        print(table_lines(name, figures), flush=True)
        write(path, content(bench, rows, asked.rounds))


if __name__ == "__main__":
    main()
