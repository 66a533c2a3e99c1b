"""Holds each kernel of a CPU artifact against its op in the IR, which onnxruntime runs.

The launches of a step run one at a time. After each one, what it wrote is compared with the value of the
same name in the program, and then replaced by it, so that a kernel's error is its own and not that of those
before it. Values that a kernel writes in int8 alone stay as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.bisect import values_of
from tokc.errors import TokcError
from tokc.instruments import Instruments
from tokc.ir.execute import Array
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.quality.perplexity import I64
from tokc.quality.running import fixed_ids
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import LIKELIEST, Batch
from tokc.runtime.executors.cpu import ITEM_TYPES, LAUNCH, CpuExecutor

TOKENS = 40  # of one sequence, read in one step
FLOAT_ERROR, INT8_ERROR = 0.005, 0.03  # of a value's norm: rounding to int8 alone takes about 0.01
GROUP = 32  # activation columns that share a scale


@dataclass(frozen=True)
class OpError:
    """How far the value that a launch wrote is from the IR's, as a share of the value's norm.

    Of chosen tokens it is the share that is not the first of the largest logits.
    `limit` is what rounding explains: more where the value was written in int8.
    """

    launch: int
    op: str
    layer: int | None
    kernel: str
    value: str
    error: float
    limit: float

    @property
    def wrong(self) -> bool:
        """Return whether the error is more than rounding explains; what is no number always is."""
        return not self.error <= self.limit


def verify_ops(
    path: Path, model: Program, pipeline: Pipeline, progress: Callable[[str], object] = lambda _: None
) -> tuple[OpError, ...]:
    """Return the error of every launch of a step whose result the IR has by name, in running order.

    Raises: TokcError if the artifact is not for this CPU.
    """
    artifact = Artifact.open(path, verify=False)
    if artifact.manifest.target.kind != "cpu":
        kind = artifact.manifest.target.kind
        raise TokcError(f"ops are verified one by one on CPUs, not on '{kind}'", where=str(path))
    program = Instruments(check=False, progress=progress).run(pipeline, model)
    count = min(TOKENS, program.config.context, artifact.manifest.limits.max_rows)
    ids = fixed_ids(program, 1, count)
    progress("run the last program")
    expected = values_of(program, ids)
    progress("run the kernels")
    executor = _Stepwise(artifact)
    try:
        return tuple(_compared(executor, ids[0], expected))
    finally:
        executor.close()


class _Stepwise(CpuExecutor):
    """Runs a step one launch at a time."""

    def launches(self, batch: Batch) -> Iterator[int]:
        """Run the launches in order; yields the index of each that has run."""
        self._load(batch)
        pool, first, count, pointers, rows = self._step_arguments
        for index in range(count):
            self._library.tokc_step(pool, first + index * LAUNCH.itemsize, 1, pointers, rows, None)
            yield index

    def written(self, buffer: Mapping[str, object], rows: int) -> Array:
        """Return a view of the first rows of a buffer of the step, [rows, width]."""
        dtype, width = np.dtype(ITEM_TYPES[str(buffer["dtype"])]), buffer["shape"][-1]  # type: ignore[index]
        flat = self._arrays[str(buffer["name"])].reshape(-1).view(np.uint8)
        found: Array = flat[: rows * width * dtype.itemsize].view(dtype).reshape(rows, width)
        return found


def _compared(
    executor: _Stepwise, ids: npt.NDArray[np.int64], expected: Mapping[str, Array]
) -> Iterator[OpError]:
    buffers, seen = executor.plan["buffers"], set[str]()
    for index in executor.launches(_batch(ids, executor.page_size)):
        launch = executor.plan["launches"][index]
        made = [buffers[at] for at, _ in launch["operands"] if buffers[at]["name"] not in seen]
        made = [buffer for buffer in made if buffer["space"] in {"arena", "output"}]
        seen |= {buffer["name"] for buffer in made}
        found = dict(_values(executor, made, len(ids)))
        kernel = executor.plan["kernels"][launch["kernel"]]
        if launch["op"] == "ArgMax":
            missed = _missed(executor, buffers, launch, len(ids))
            yield OpError(index, launch["op"], None, kernel, LIKELIEST, missed, 0.0)
        for value, (array, whole) in found.items():
            right = _f64(expected.get(value), len(ids))
            if right is None or right.shape[1] > array.shape[1]:
                continue
            norm = float(np.linalg.norm(right)) or 1.0
            error = float(np.linalg.norm(array[:, : right.shape[1]] - right)) / norm
            limit = INT8_ERROR if whole is None else FLOAT_ERROR
            yield OpError(index, launch["op"], launch["layer"], kernel, value, error, limit)
            if whole is not None:
                whole[:, : right.shape[1]] = right


def _missed(
    executor: _Stepwise, buffers: Sequence[Mapping[str, object]], launch: Mapping[str, Any], rows: int
) -> float:
    """Return the share of rows whose token is not the first of their largest logits."""
    logits, tokens = (executor.written(buffers[at], rows) for at, _ in launch["operands"])
    return float(np.mean(logits[:, : executor.vocab_size].argmax(axis=1) != tokens[:, 0]))


def _f64(value: Array | None, rows: int) -> npt.NDArray[np.float64] | None:
    """Return a value of the program as [rows, width], None where it is not of so many rows."""
    if value is None or value.size % rows:
        return None
    found: npt.NDArray[np.float64] = value.reshape(rows, -1).astype(np.float64)
    return found


def _values(
    executor: _Stepwise, made: list[Mapping[str, object]], rows: int
) -> Iterator[tuple[str, tuple[npt.NDArray[np.float64], Array | None]]]:
    """Return by name what a launch wrote: as f64, and where it lies if it is a float there.

    An int8 value (`q.NAME`, its scales `s.NAME`) is returned only where the launch wrote no float of it.
    """
    named = {str(buffer["name"]): buffer for buffer in made}
    for name, buffer in named.items():
        kind, _, value = name.partition(".")
        array = executor.written(buffer, rows)
        if kind == "a" and array.dtype == np.float32:
            yield value, (array.astype(np.float64), array)
        elif kind == "q" and f"a.{value}" not in named and f"s.{value}" in named:
            scales = executor.written(named[f"s.{value}"], rows).astype(np.float64)
            yield value, (array.astype(np.float64) * np.repeat(scales, GROUP, axis=1), None)


def _batch(ids: I64, page: int) -> Batch:
    at = np.arange(len(ids), dtype=np.int32)
    tables = np.arange(-(-len(ids) // page), dtype=np.int32)[::-1][None]
    return Batch(ids.astype(np.int32), at, np.zeros_like(at), np.ascontiguousarray(tables), at)
