"""Runs the process that exports and compiles a step, and reads what it made."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokc.errors import TargetRefused
from tokc.targets.tpu.step import Step
from tokc.targets.tpu.topologies import Topology

LAST_LINES = 12
# libtpu asks a metadata server where it is, unless told that it is nowhere; JAX stays on the processor.
CHILD_ENVIRONMENT: Mapping[str, str] = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs on a TPU here, so that builds may go on side by side
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Job:
    """What to export and compile.

    `pages` is the size of the cache, None to leave it open, `check_pages` what is compiled then. `compile`
    names buckets; `topology` is what they are compiled for, None for this machine.
    """

    step: Step
    pages: int | None
    compile: tuple[str, ...] = ()
    topology: Topology | None = None
    check_pages: int = 8

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        return {
            "step": self.step.to_json(),
            "pages": self.pages,
            "check_pages": self.check_pages,
            "compile": list(self.compile),
            "topology": None if self.topology is None else topology_facts(self.topology),
        }


def topology_facts(topology: Topology) -> dict[str, Any]:
    """Return what libtpu and Pallas want to know of a topology."""
    return {
        "name": topology.libtpu_name,
        "host_bounds": list(topology.host_bounds),
        "kind": topology.generation.kind,
        "cores": topology.generation.cores,
    }


@dataclass(frozen=True)
class Made:
    """What the process wrote: files by name, and its report."""

    files: Mapping[str, bytes]
    report: Mapping[str, Any]


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package that an extra installs.

    Raises: TargetRefused naming the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise TargetRefused(
            f"the target needs the package '{module}', which is not installed",
            hint=f"pip install 'tokc-compiler[{extra}]'",
        )


def run(job: Job, environment: Mapping[str, str] = CHILD_ENVIRONMENT) -> Made:
    """Export and compile in a process of its own.

    Raises: TargetRefused with the end of what it said, if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="tokc-xla-") as name:
        folder = Path(name)
        description = folder / "job.json"
        description.write_text(json.dumps(job.to_json()))
        out = folder / "out"
        out.mkdir()
        command = [sys.executable, "-m", "tokc.targets.tpu.child", str(description), str(out)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )
        if done.returncode:
            tail = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
            raise TargetRefused(
                f"XLA could not compile the step: {tail}",
                where=job.topology.libtpu_name if job.topology else "this machine",
            )
        files = {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "report.json"}
        return Made(files, json.loads((out / "report.json").read_text()))
