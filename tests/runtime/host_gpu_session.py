"""Runs some steps of the small model, in a process that finds the host's GPU as its driver's library."""

# What it prints is read by the test.
# ruff: noqa: T201

import sys
from pathlib import Path

from tests.runtime.gpu_model import Pages
from tokc.errors import TokcError
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.gpu import GpuExecutor
from tokc.runtime.executors.table import executor_for


def batches(num_pages: int) -> list[Batch]:
    """Return steps of which the second and third replay the graph of one bucket, and a wide one."""
    pages = Pages(num_pages)
    steps = [{0: [1], 2: [5]}, {0: [2], 2: [4]}, {0: [3], 2: [3]}, {1: [7] * 20}]
    return [pages.batch(step) for step in steps]


def main(folder: str, kv_bytes: str) -> None:
    """Print what `step` and `profile` answer, or the error."""
    try:
        executor = executor_for(Artifact.open(Path(folder)), kv_bytes=int(kv_bytes))
        assert isinstance(executor, GpuExecutor)
        print(executor.driver.properties)
        for batch in batches(executor.num_pages):
            try:
                executor.step(batch)
            except TokcError as error:
                print(error)
        seconds = executor.profile(batches(executor.num_pages)[0])
        print("profile", seconds.sum(axis=0).round(6).tolist())
    except TokcError as error:
        print("refused:", error)
    else:
        executor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
