"""Predicted against measured decoding on this machine: `python -m bench.prediction --out out/prediction`.

Builds SmolLM2-135M and random weights of the shape of Llama 3.2 1B, fits efficiencies to the first and to
both, measures the grid of both by the engine, and prints tables in Markdown. Run it when nobody else does.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.models import random_1b_q4_0, smollm2_q4_1
from tokc.cost import records
from tokc.cost.calibration import Calibration, calibration_path
from tokc.report import prediction_text, sections
from tokc.report.prediction import Comparison, compared, grid_of

SMOLLM2, ONE_B = "smollm2-135m", "random-llama-1b"
COMMAND = "from tokc.cli.entry import main; main()"
FITS = ((SMOLLM2,), (SMOLLM2, ONE_B))


def tokc(*arguments: object) -> None:
    """Run the program in a process of its own, its progress shown, its tables not."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def artifacts(out: Path) -> Iterator[Path]:
    """Build both artifacts where they are missing."""
    for name, model in ((SMOLLM2, smollm2_q4_1), (ONE_B, lambda: random_1b_q4_0(out))):
        path = out / f"{name}.tokc"
        if not path.exists():
            tokc("build", model(), "--out", path, "--no-check", "--context", 8192)
        yield path


def threaded(threads: int | None) -> list[object]:
    """Return the option of so many threads, none for every core."""
    return [] if threads is None else ["--threads", threads]


def fit(paths: Sequence[Path], threads: int | None, seconds: float) -> Calibration:
    """Calibrate on some artifacts; the result is the machine's until the next one."""
    chosen = [word for path in paths for word in ("--calibrate", path)]
    tokc("doctor", *chosen, "--seconds", seconds, *threaded(threads))
    device = json.loads((paths[0] / "manifest.json").read_text())["target"]["device"]
    return records.read(Calibration, calibration_path(device))


def comparisons(paths: Sequence[Path]) -> tuple[Comparison, ...]:
    """Return the grids beside what the machine's calibration predicts."""
    found = [(path, grid_of(path)) for path in paths]
    return tuple(compared(path, grid) for path, grid in found if grid is not None)


def tables(found: dict[str, tuple[Comparison, ...]], fits: dict[str, Calibration]) -> str:
    """Return the errors of each fit, and every cell of the last one, as Markdown."""
    lines = [
        "| fitted to | error of the fit, mean, worst | model | error of the grid, mean, worst |",
        "|---|---|---|---|",
    ]
    for name, rows in found.items():
        fit_text = f"{fits[name].mean_error:.1%}, {fits[name].worst_error:.1%}"
        lines += [
            f"| {name} | {fit_text} | {one.artifact} | {one.mean_error:.1%}, {one.worst_error:.1%} |"
            for one in rows
        ]
    last = next(reversed(found.values()))
    return "\n".join(lines) + "\n\n" + sections.markdown("Cells", [prediction_text.grid_section(last)])


def main() -> None:
    """Build, calibrate, measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.prediction", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/prediction"))
    parser.add_argument("--threads", type=int, help="[default: every core]")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time steps of a model")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str((asked.out / "cache").resolve())
    paths = {path.name.removesuffix(".tokc"): path for path in artifacts(asked.out)}
    for path in paths.values():
        tokc("bench", path, "--grid", *threaded(asked.threads))
    found, fits = {}, {}
    for names in FITS:
        label = " and ".join(names)
        fits[label] = fit([paths[name] for name in names], asked.threads, asked.seconds)
        found[label] = comparisons(list(paths.values()))
    text = tables(found, fits)
    (asked.out / "prediction.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
