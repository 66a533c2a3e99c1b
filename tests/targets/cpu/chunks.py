"""One sequence through an executor, in chunks."""

import numpy as np

from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor


def answers(executor: CpuExecutor, ids: np.ndarray, chunk: int) -> np.ndarray:
    """Run one sequence in chunks, on pages in descending order."""
    table = np.arange(-(-len(ids) // executor.page_size), dtype=np.int32)[None, ::-1]
    parts = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk].astype(np.int32)
        count = np.arange(len(part), dtype=np.int32)
        batch = Batch(part, start + count, np.zeros_like(count), np.ascontiguousarray(table), count)
        parts.append(executor.step(batch).copy())
    return np.concatenate(parts)
