"""Runs an artifact's plan on this machine's CPU.

The step is one call through ctypes, which gives the interpreter's lock back while it runs.
"""

import ctypes
import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import (
    BLOCK_MAXIMA,
    BLOCK_SUMS,
    LIKELIEST,
    SCALES,
    Batch,
    LogitBlocks,
    refuse_trees,
)
from tokc.runtime.executors.cpu_trees import CpuTrees
from tokc.runtime.manifest import DRAFT
from tokc.runtime.memory import anonymous

if TYPE_CHECKING:
    from tokc.runtime.executors.cpu_draft import CpuDraft

ITEM_TYPES: Mapping[str, type[np.generic]] = {
    "f32": np.float32,
    "f16": np.float16,
    "i32": np.int32,
    "i8": np.int8,
    "u8": np.uint8,
}
ROW_COUNTS = {"tokens": 0, "rows": 1, "drafts": 2}
# launch_t of the driver; `ahead` is the packed weight that the next launch of `STREAMING_OPS` reads.
LAUNCH = np.dtype(
    [
        ("kernel", "i4"),
        ("rows", "i4"),
        ("first_pointer", "i4"),
        ("", "i4"),
        ("ahead", "u8"),
        ("ahead_bytes", "i8"),
    ]
)
READ_STREAMS, READ_AHEAD_BYTES = (1, 2, 4), (0, 2048)
STREAMING_OPS = {"QuantLinear", "Linear"}
LOGITS, FEATURES = "a.logits", "a.features"  # the buffers of a step's outputs
DRAFT_PLAN = f"{DRAFT}/plan.json"
DEFAULT_CONTEXTS = 8
MEMORY_SHARE = 0.25


class CpuExecutor:
    """Holds the weights, the paged cache and the threads of one model."""

    _arrays: dict[str, npt.NDArray[Any]]

    def __init__(
        self, artifact: Artifact, *, threads: int | None = None, kv_bytes: int | None = None
    ) -> None:
        """Load the weights and make the cache.

        `kv_bytes` None takes room for 8 contexts, at most a quarter of the memory.

        Raises: ArtifactRefused if this CPU lacks an instruction that the kernels use.
        """
        manifest = artifact.manifest
        require_features(manifest.target.features, manifest.target.arch, artifact.path)
        plan = json.loads((artifact.path / "plan.json").read_text())
        self.threads = threads or usable_cores()
        self.vocab_size = manifest.model.vocab
        self.page_size = manifest.kv.page
        self.context_length = manifest.limits.context
        self.max_tokens = manifest.limits.max_tokens_per_step
        self.max_seqs = manifest.limits.max_rows
        self._limits: dict[str, int] = plan["limits"]
        self.kv_bytes_per_page = _page_bytes(plan)
        if manifest.draft is not None:
            self.kv_bytes_per_page += _page_bytes(json.loads((artifact.path / DRAFT_PLAN).read_text()))
        self.num_pages = self._count_pages(kv_bytes)
        self._library = load_library(artifact.path / "kernels" / manifest.target.library)
        self._pool = self._library.tokc_open(self.threads)
        if not self._pool:
            raise ArtifactRefused(f"cannot start {self.threads} threads", hint="lower --threads")
        self.weights = artifact.resident_tensors()
        self._prepare(plan, self.weights)
        self._logits = self._arrays[LOGITS]
        self._features = self._arrays.get(FEATURES)
        self.draft = self._open_draft(artifact)
        self._likeliest = self._arrays.get(LIKELIEST)

    @classmethod
    def open(
        cls, artifact: Artifact, *, threads: int | None = None, kv_bytes: int | None = None
    ) -> "CpuExecutor":
        """Return an executor for `artifact`."""
        return cls(artifact, threads=threads, kv_bytes=kv_bytes)

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step; returns logits f32[rows, vocab], valid until the next step.

        Raises: RequestRefused if the batch is larger than the artifact's limits.
        """
        self._load(batch)
        self._library.tokc_step(*self._step_arguments, None)
        return self._logits[: len(batch.logit_rows), : self.vocab_size]

    @property
    def likeliest(self) -> npt.NDArray[np.int32] | None:
        """Return the token of each row's largest logit in the last step, i32[rows]; of equals the first.

        None where the artifact's plan does not look for it.
        """
        return None if self._likeliest is None else self._likeliest[: self._rows[1], 0]

    @property
    def blocks(self) -> LogitBlocks | None:
        """Return what helps to draw from the last step's logits; None where the plan does not look for it."""
        if BLOCK_SUMS not in self._arrays:
            return None
        rows = self._rows[1]
        return LogitBlocks(self._arrays[BLOCK_MAXIMA][:rows], self._arrays[BLOCK_SUMS][:rows])

    @property
    def features(self) -> npt.NDArray[np.float32] | None:
        """Return the last step's hidden states f32[tokens, hidden], valid until the next step.

        None where the artifact does not expose them (pass `expose-features`).
        """
        return None if self._features is None else self._features[: self._rows[0]]

    def profile(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Run one step; returns seconds f64[launches, 2]: in the kernel, and waiting after it."""
        nanoseconds = np.zeros((self.threads, len(self._launches), 2), np.int64)
        self._load(batch)
        self._library.tokc_step(*self._step_arguments, nanoseconds.ctypes.data)
        return np.asarray(nanoseconds.mean(axis=0) * 1e-9)

    def read_bandwidth(self, size_bytes: int = 1 << 28, repeats: int = 5) -> float:
        """Measure how fast all threads together read memory, in the best of several ways; bytes a second."""
        data = _anonymous(size_bytes, huge=True)
        data[:] = 1
        return read_bandwidth(self._library, self._pool, data.ctypes.data, size_bytes, repeats)

    def close(self) -> None:
        """Stop the threads and let go of the cache."""
        if self._pool:
            self._library.tokc_close(self._pool)
            self._pool = None
            self._arrays = {}
            if self.draft is not None:
                self.draft.close()

    def _prepare(self, plan: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Make the buffers of a plan and link its launches to them."""
        self.plan = plan
        self._arrays = self._allocate(plan, weights)
        self._launches, self._pointers = self._link(plan)
        has_trees = "ancestors" in self._inputs
        kept = (self._library, self._pool, plan["buffers"], self._arrays)
        self.trees = CpuTrees(*kept) if has_trees else None
        self._rows = np.zeros(len(ROW_COUNTS), np.int32)

    def _open_draft(self, artifact: Artifact) -> "CpuDraft | None":
        from tokc.runtime.executors.cpu_draft import CpuDraft  # which is an executor, too

        return (
            None if artifact.manifest.draft is None else CpuDraft(self, artifact, self._library, self._pool)
        )

    def _load(self, batch: Batch) -> None:
        tokens, rows = len(batch.input_ids), len(batch.logit_rows)
        seqs, blocks = batch.block_tables.shape
        for count, limit, what in (
            (tokens, self.max_tokens, "tokens"),
            (rows, self._limits["rows"], "logit rows"),
            (seqs, self._limits["seqs"], "sequences"),
            (blocks, self._limits["blocks"], "blocks a sequence"),
        ):
            if count > limit:
                raise RequestRefused(f"a step of {count} {what} exceeds the artifact's limit of {limit}")
        inputs = self._inputs
        inputs["input_ids"][:tokens] = batch.input_ids
        inputs["positions"][:tokens] = batch.positions
        inputs["sequences"][:tokens] = batch.sequences
        inputs["logit_rows"][:rows] = batch.logit_rows
        inputs["block_tables"][: seqs * blocks] = batch.block_tables.reshape(-1)
        inputs["info"][:] = (tokens, rows, seqs, blocks)
        if SCALES in inputs:
            inputs[SCALES][:rows] = 0 if batch.scales is None else batch.scales
        if self.trees is not None:
            inputs["entries"][:tokens] = batch.positions if batch.entries is None else batch.entries
            inputs["ancestors"][:tokens] = 0 if batch.ancestors is None else batch.ancestors
        else:
            refuse_trees(batch)
        self._rows[:2] = (tokens, rows)

    def _count_pages(self, kv_bytes: int | None) -> int:
        context_pages = -(-self.context_length // self.page_size)
        if kv_bytes is None:
            kv_bytes = int(
                min(DEFAULT_CONTEXTS * context_pages * self.kv_bytes_per_page, MEMORY_SHARE * memory_bytes())
            )
            return max(context_pages, kv_bytes // self.kv_bytes_per_page)
        pages = kv_bytes // self.kv_bytes_per_page
        if pages < 1:
            raise RequestRefused(
                f"a cache of {kv_bytes} bytes holds no page of {self.kv_bytes_per_page} bytes",
                hint=f"a whole context takes {context_pages * self.kv_bytes_per_page} bytes",
            )
        return pages

    def _allocate(
        self, plan: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        sizes = {**self._limits, "pages": self.num_pages}
        arena = _anonymous(max(plan["arena_bytes"], 64), huge=True)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for buffer in plan["buffers"]:
            name, size = buffer["name"], _bytes(buffer, sizes)
            match buffer["space"]:
                case "weights":
                    arrays[name] = weights[name]
                case "arena":
                    arrays[name] = arena[buffer["offset"] :]
                case "scratch":
                    arrays[name] = _anonymous(size * self.threads)
                case _:
                    arrays[name] = _anonymous(size).view(ITEM_TYPES[buffer["dtype"]])
            if buffer["space"] == "output":
                arrays[name] = arrays[name].reshape(-1, buffer["shape"][-1])
        self._inputs = {b["name"]: arrays[b["name"]] for b in plan["buffers"] if b["space"] == "input"}
        return arrays

    def _link(self, plan: Mapping[str, Any]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint64]]:
        addresses = [self._arrays[buffer["name"]].ctypes.data for buffer in plan["buffers"]]
        launches = np.zeros(len(plan["launches"]), LAUNCH)
        pointers: list[int] = []
        for at, launch in enumerate(plan["launches"]):
            launches[at] = (launch["kernel"], ROW_COUNTS[launch["rows"]], len(pointers), 0, 0, 0)
            pointers += [addresses[buffer] + offset for buffer, offset in launch["operands"]]
        streams = [at for at, launch in enumerate(plan["launches"]) if launch["op"] in STREAMING_OPS]
        for at, following in itertools.pairwise([*streams, *streams[:1]]):
            weight, _ = plan["launches"][following]["operands"][0]
            launches[at]["ahead"] = addresses[weight]
            launches[at]["ahead_bytes"] = _bytes(plan["buffers"][weight], {})
        return launches, np.array(pointers, np.uint64)

    @property
    def _step_arguments(self) -> Sequence[Any]:
        return (
            self._pool,
            self._launches.ctypes.data,
            len(self._launches),
            self._pointers.ctypes.data,
            self._rows.ctypes.data,
        )


def read_bandwidth(library: ctypes.CDLL, pool: int, address: int, size_bytes: int, repeats: int) -> float:
    """Return the best bytes a second over `repeats` of each way to read: no one way is best on all CPUs."""
    measure = library.tokc_read_bandwidth
    return max(
        float(measure(pool, address, size_bytes, streams, ahead))
        for _ in range(repeats)
        for streams in READ_STREAMS
        for ahead in READ_AHEAD_BYTES
    )


def load_library(path: Path) -> ctypes.CDLL:
    """Load the kernels and declare the driver's functions."""
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    library.tokc_open.argtypes, library.tokc_open.restype = [ctypes.c_int32], pointer
    library.tokc_close.argtypes, library.tokc_close.restype = [pointer], None
    library.tokc_step.argtypes = [pointer, pointer, ctypes.c_int32, pointer, pointer, pointer]
    library.tokc_step.restype = None
    library.tokc_read_bandwidth.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
    library.tokc_read_bandwidth.restype = ctypes.c_double
    return library


def require_features(features: Sequence[str], arch: str, where: Path) -> None:
    """Refuse an artifact whose kernels this CPU cannot run.

    Raises: ArtifactRefused naming the machine or the instruction sets that are missing.
    """
    if platform.machine() != arch:
        raise ArtifactRefused(
            f"the artifact is for '{arch}', this machine is '{platform.machine()}'",
            where=str(where),
            hint="build it here, or with --target for this machine",
        )
    missing = sorted(set(features) - host_features())
    if missing:
        raise ArtifactRefused(
            f"this CPU lacks {', '.join(missing)}, which the artifact's kernels use",
            where=str(where),
            hint="build it on this machine with `--target cpu`",
        )


def host_features() -> frozenset[str]:
    """Return the instruction sets of this CPU, in the kernel's spelling."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(flags.split())
    return frozenset()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _page_bytes(plan: Mapping[str, Any]) -> int:
    """Return what a page of the cache of all layers takes."""
    return sum(_bytes(buffer, {"pages": 1}) for buffer in plan["buffers"] if buffer["space"] == "kv")


def _bytes(buffer: dict[str, Any], sizes: Mapping[str, int]) -> int:
    count = 1
    for extent in buffer["shape"]:
        count *= sizes[extent] if isinstance(extent, str) else extent
    return count * np.dtype(ITEM_TYPES[buffer["dtype"]]).itemsize


def _anonymous(size: int, *, huge: bool = False) -> npt.NDArray[np.uint8]:
    """Return zeroed memory, on huge pages if wanted and to be had; untouched pages cost nothing."""
    return np.frombuffer(anonymous(size, huge=huge), np.uint8)
