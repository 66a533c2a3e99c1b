"""Builds a tiny model cut over four devices that this machine pretends to have, and prints what it found.

Run as `python -m tests.targets.tpu.four_devices MODEL OUT`, with XLA_FLAGS as the test sets them.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from tokc import compiler
from tokc.targets.base import Precision
from tokc.targets.tpu import target
from tokc.targets.tpu.build import Job, run
from tokc.targets.tpu.describe import describe

CHIPS = 4


def main(model: Path, out: Path) -> None:
    """Build and check the model on four devices, and list what they say to each other."""
    target.CPU = replace(target.CPU, chips=CHIPS)
    request = compiler.Request(model, target="xla:cpu", precision=Precision("int8", 32, "f32"))
    built = compiler.build(request, out)
    step = describe(built.program, target.CPU, 64, (target.Bucket(16, 16),)).step
    report = run(Job(step, pages=None, compile=("step_16x16",))).report
    last = built.ledger[-1]
    found = {
        "last": last.pass_spec,
        "difference": last.max_abs_logit_diff,
        "collectives": report["buckets"]["step_16x16"]["collectives"],
    }
    print(json.dumps(found))  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
