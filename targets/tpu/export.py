"""Takes an artifact's steps out as plain StableHLO, for compilers that tokc has no target for."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tokc.errors import TargetRefused, TokcError
from tokc.targets.tpu.build import CHILD_ENVIRONMENT, LAST_LINES, require

KINDS = ("xla", "tpu")


def export_stablehlo(artifact: Path, out: Path, *, contexts: int = 1) -> tuple[Path, ...]:
    """Write the steps of an artifact for `xla` or `tpu` to a folder, with a cache for `contexts` contexts.

    Returns the files. Raises: TargetRefused if the artifact holds no StableHLO; TokcError if `out` is taken.
    """
    require("jax", "xla")
    index = artifact / "kernels" / "xla.json"
    if not index.is_file():
        raise TargetRefused(
            f"'{artifact}' holds no StableHLO",
            hint=f"build it with --target xla:cpu; artifacts of {', '.join(KINDS)} hold some",
        )
    if out.exists() and any(out.iterdir()):
        raise TokcError(f"'{out}' exists and is not empty", hint="give another --out")
    out.mkdir(parents=True, exist_ok=True)
    known = json.loads(index.read_text())
    built = known["pages"]
    pages = (contexts * known["cache"]["blocks"] if built is None else built) + 1
    command = [sys.executable, "-m", "tokc.targets.tpu.stablehlo", str(artifact), str(out), str(pages)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **CHILD_ENVIRONMENT}
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:])
        raise TokcError(f"the steps could not be written: {tail}", where=str(out))
    return tuple(sorted(out.iterdir()))
