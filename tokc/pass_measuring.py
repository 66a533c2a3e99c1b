"""Measures a build after each of its passes: what was made so far is lowered, run and thrown away.

A program has code from the passes on that a target cannot do without; the layout of the cache is one of them,
and is borrowed from the end of the pipeline for programs before it. No other later pass runs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tokc.compiler import Request, build
from tokc.cost import records
from tokc.cost.devices import CpuWatch
from tokc.cost.measure import Bench
from tokc.cost.pass_rates import PassRate, PassRates
from tokc.errors import TokcError
from tokc.pipeline import Pipeline, pass_text
from tokc.report.identity import manifest_sha256
from tokc.runtime.artifact import Artifact
from tokc.targets.table import runs_here

CACHE_LAYOUT, LAST = "kv-layout", "eliminate-dead-code"
PROMPT, OUTPUT = 96, 32
BENCH = "from tokc.cli.entry import main; main()"

Progress = Callable[[str], None]


def measure_passes(
    request: Request, artifact: Path, changed: Sequence[int], say: Progress
) -> PassRates | None:
    """Measure after the passes of these numbers, the first being 1; None if this machine runs no such code.

    Numbers beyond the pipeline's are of its lowering, and passed over.
    Raises: TokcError if the artifact is damaged.
    """
    manifest = Artifact.open(artifact, verify=False).manifest
    if not runs_here(manifest.target):
        return None
    specs = [pass_text(one) for one in Pipeline.parse(manifest.pipeline).passes]
    watch, rows = CpuWatch(), []
    with tempfile.TemporaryDirectory(dir=artifact.parent, prefix=f".{artifact.name}.") as folder:
        for number in (one for one in changed if one <= len(specs)):
            say(f"measure after pass {number} of {len(specs)}, {specs[number - 1].partition('{')[0]}")
            rows.append(_measure(request, specs, number, Path(folder) / "pass.tokc"))
    return PassRates(
        artifact=artifact.name,
        manifest_sha256=manifest_sha256(artifact),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        context=PROMPT + OUTPUT // 2,
        rows=tuple(rows),
        foreign_cpu=watch.foreign_share(),
    )


def pipeline_until(specs: Sequence[str], number: int) -> str:
    """Return the first passes, with the cache's layout if it comes later."""
    first, later = list(specs[:number]), specs[number:]
    first += [spec for spec in later if spec.partition("{")[0] == CACHE_LAYOUT]
    return ",".join([*first, LAST])


def _measure(request: Request, specs: Sequence[str], number: int, out: Path) -> PassRate:
    spec = specs[number - 1]
    asked = replace(request, passes=pipeline_until(specs, number), check=False, unfinished=None)
    try:
        build(replace(asked, dump_ir=None, print_after=(), stop_after=None), out)
        return PassRate(number, spec, 1.0 / _token_s(out))
    except TokcError as error:
        return PassRate(number, spec, None, error.problem)


def _token_s(artifact: Path) -> float:
    """Return the least time of a token, by `tokc bench` in a process that holds nothing of the compiler.

    Raises: TokcError if it fails.
    """
    written = artifact.with_suffix(".json")
    sizes = ["--batch", "1", "--prompt-tokens", str(PROMPT), "--output-tokens", str(OUTPUT)]
    command = [sys.executable, "-c", BENCH, "bench", str(artifact), *sizes, "--out", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TokcError(f"it could not be measured: {said[-1] if said else done.returncode}")
    return records.read(Bench, written).points[0].tpot_s.least
