"""Runs an artifact's exported steps with JAX: on this machine's processor, or on TPUs.

Each bucket, a step of some most tokens and sequences, is StableHLO that XLA compiles when it is first needed;
a batch is padded to the smallest bucket that holds it. The cache is donated to each step and comes back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch, refuse_trees
from tokc.runtime.executors.cpu import memory_bytes

MESH_AXIS = "tp"
CACHES = 1  # the argument of a step that it may overwrite
DEFAULT_CONTEXTS = 8
MEMORY_SHARE = 0.25
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
SCALE_BYTES = 4
FOUR_BITS = ("int4", "uint4")


class Bucket(NamedTuple):
    """Bound a step: its tokens, and its sequences and rows of logits."""

    tokens: int
    seqs: int
    file: str


class Padded(NamedTuple):
    """Hold a batch as a bucket takes it: sequences in order, each one's tokens together, padding at the end.

    Padding has position -1: it writes into the page that no sequence owns.
    """

    input_ids: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    sequences: npt.NDArray[np.int32]
    block_tables: npt.NDArray[np.int32]
    logit_rows: npt.NDArray[np.int32]


class XlaExecutor:
    """Holds the weights, the paged cache and the compiled steps of one model; `num_pages` tell no scratch."""

    likeliest = blocks = None  # the host finds them
    trees = None

    def __init__(self, artifact: Artifact, *, kv_bytes: int | None = None) -> None:
        """Load the weights and make the cache; steps are compiled when they are first needed.

        `kv_bytes` None takes room for 8 contexts, at most a quarter of the memory, or what the artifact says.

        Raises: ArtifactRefused if JAX is missing, or the artifact's devices are not here.
        """
        manifest = artifact.manifest
        index = json.loads((artifact.path / "kernels" / manifest.target.library).read_text())
        self._jax = _jax(index["platform"], artifact.path)
        self._devices = self._find_devices(index, artifact.path)
        self._kernels = artifact.path / "kernels"
        self._index: Mapping[str, Any] = index
        self.vocab_size = manifest.model.vocab
        self.page_size = manifest.kv.page
        self.context_length = manifest.limits.context
        self.max_tokens = manifest.limits.max_tokens_per_step
        self.max_seqs = manifest.limits.max_rows
        self.buckets = tuple(Bucket(b["tokens"], b["seqs"], b["file"]) for b in index["buckets"])
        self._blocks: int = index["cache"]["blocks"]
        self.kv_bytes_per_page = _page_bytes(index["cache"])
        self.num_pages = self._count_pages(kv_bytes)
        self._steps: dict[Bucket, Any] = {}
        self._weights = self._load_weights(artifact)
        self._caches = self._make_caches()

    @classmethod
    def open(
        cls, artifact: Artifact, *, threads: int | None = None, kv_bytes: int | None = None
    ) -> "XlaExecutor":
        """Return an executor for `artifact`; XLA has threads of its own, `threads` is not used."""
        del threads
        return cls(artifact, kv_bytes=kv_bytes)

    def step(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Run one step; returns logits f32[rows, vocab], valid until the next step.

        Raises: RequestRefused if the batch is larger than the artifact's largest step.
        """
        refuse_trees(batch)
        bucket = self.bucket_of(batch)
        logits, self._caches = self._step(bucket)(
            self._weights, self._caches, *padded(batch, bucket, self._blocks)
        )
        rows = logits[: len(batch.logit_rows)]
        return np.asarray(rows)

    def bucket_of(self, batch: Batch) -> Bucket:
        """Return the smallest bucket that holds a batch.

        Raises: RequestRefused if none does.
        """
        tokens, rows = len(batch.input_ids), len(batch.logit_rows)
        seqs = max(len(np.unique(batch.sequences)), rows)
        fitting = [each for each in self.buckets if each.tokens >= tokens and each.seqs >= seqs]
        if not fitting or batch.block_tables.shape[1] > self._blocks:
            raise RequestRefused(
                f"a step of {tokens} tokens, {seqs} sequences or logit rows and {batch.block_tables.shape[1]}"
                f" blocks a sequence exceeds the artifact's largest, {self.max_tokens}, {self.max_seqs}"
                f" and {self._blocks}"
            )
        return min(fitting, key=lambda each: (each.tokens, each.seqs))

    def close(self) -> None:
        """Let go of the weights, the cache and the compiled steps; calling it again is allowed."""
        self._steps = {}
        self._weights = {}
        self._caches = ()

    def _step(self, bucket: Bucket) -> Any:
        if bucket not in self._steps:
            exported = self._jax.export.deserialize(bytearray((self._kernels / bucket.file).read_bytes()))
            self._steps[bucket] = self._jax.jit(exported.call, donate_argnums=(CACHES,))
        return self._steps[bucket]

    def _find_devices(self, index: Mapping[str, Any], where: Path) -> Any:
        chips = index["chips"]
        try:
            devices = self._jax.devices(index["platform"])
        except RuntimeError:  # how JAX says that it has none
            devices = []
        if len(devices) < chips:
            raise ArtifactRefused(
                f"the artifact is for {chips} '{index['platform']}' devices, this machine has {len(devices)}",
                where=str(where),
                hint="build it for the topology that is here; `tokc targets` lists them",
            )
        return devices[:chips]

    def _place(self, axes: list[str | None]) -> Any:
        """Return where an array lies: on the one device, or cut over all along `axes`."""
        sharding = self._jax.sharding
        if len(self._devices) == 1:
            return sharding.SingleDeviceSharding(self._devices[0])
        mesh = sharding.Mesh(np.array(self._devices), (MESH_AXIS,))
        return sharding.NamedSharding(mesh, sharding.PartitionSpec(*axes))

    def _load_weights(self, artifact: Artifact) -> dict[str, Any]:
        """Bring every weight to its devices; on a processor the file's own memory is used where it can be."""
        tensors = artifact.resident_tensors()
        return {
            name: self._jax.device_put(self._weight(tensors[name], entry), self._place(entry["axes"]))
            for name, entry in self._index["weights"].items()
        }

    def _weight(self, stored: npt.NDArray[Any], entry: Mapping[str, Any]) -> Any:
        """Return a weight as the step takes it."""
        dtype = entry["dtype"]
        if dtype == "bfloat16":
            return stored.view(self._jax.numpy.bfloat16)
        if dtype in FOUR_BITS and self._index["platform"] == "tpu":
            return four_bits(stored, self._jax.numpy.dtype(dtype))
        return stored

    def _make_caches(self) -> tuple[tuple[Any, ...], ...]:
        cache = self._index["cache"]
        jax, numpy = self._jax, self._jax.numpy
        shape = (self.num_pages + 1, cache["page"], 2 * cache["kv_heads"], cache["dim"])
        arrays: list[tuple[tuple[int, ...], str, list[str | None]]] = [(shape, cache["dtype"], cache["axes"])]
        if cache["dtype"] == "int8":
            arrays.append((shape[:3], "float32", cache["axes"][:3]))

        def layer() -> tuple[Any, ...]:
            return tuple(
                jax.jit(lambda s=s, d=d: numpy.zeros(s, d), out_shardings=self._place(axes))()
                for s, d, axes in arrays
            )

        return tuple(layer() for _ in range(cache["layers"]))

    def _count_pages(self, kv_bytes: int | None) -> int:
        built: int | None = self._index["pages"]
        page = self.kv_bytes_per_page
        if built is not None:
            if kv_bytes is not None and kv_bytes < built * page:
                raise RequestRefused(
                    f"the artifact was compiled with a cache of {built * page} bytes; it cannot be smaller"
                )
            return built
        whole = self._blocks
        if kv_bytes is None:
            wanted = min(DEFAULT_CONTEXTS * whole * page, MEMORY_SHARE * memory_bytes())
            return max(whole, int(wanted) // page)
        if kv_bytes < page:
            raise RequestRefused(
                f"a cache of {kv_bytes} bytes holds no page of {page} bytes",
                hint=f"a whole context takes {whole * page} bytes",
            )
        return kv_bytes // page


def padded(batch: Batch, bucket: Bucket, blocks: int) -> Padded:
    """Return a batch as a bucket takes it; `blocks` is the width of the step's block tables."""
    tokens, rows = len(batch.input_ids), len(batch.logit_rows)
    used, sequences = np.unique(batch.sequences, return_inverse=True)
    order = np.argsort(sequences, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(tokens)
    made = Padded(
        input_ids=np.zeros(bucket.tokens, np.int32),
        positions=np.full(bucket.tokens, -1, np.int32),
        sequences=np.zeros(bucket.tokens, np.int32),
        block_tables=np.zeros((bucket.seqs, blocks), np.int32),
        logit_rows=np.zeros(bucket.seqs, np.int32),
    )
    made.input_ids[:tokens] = batch.input_ids[order]
    made.positions[:tokens] = batch.positions[order]
    made.sequences[:tokens] = sequences[order]
    made.block_tables[: len(used), : batch.block_tables.shape[1]] = batch.block_tables[used]
    made.logit_rows[:rows] = place[batch.logit_rows]
    return made


def four_bits(stored: npt.NDArray[np.uint8], dtype: Any) -> npt.NDArray[Any]:
    """Return codes one an element of `dtype`, int4 or uint4, from two a byte.

    Of the last axis, the first half lies in the low four bits, the second in the high ones.
    """
    signed = np.dtype(dtype).name == "int4"
    pairs = stored.view(np.int8) if signed else stored
    low = (pairs << 4) >> 4 if signed else pairs & 15
    return np.concatenate([low, pairs >> 4], axis=-1).astype(dtype)


def _page_bytes(cache: Mapping[str, Any]) -> int:
    row = cache["dim"] * ITEM_BYTES[cache["dtype"]] + (SCALE_BYTES if cache["dtype"] == "int8" else 0)
    return int(cache["layers"] * cache["page"] * 2 * cache["kv_heads"] * row)


def _jax(platform: str, where: Path) -> Any:
    """Import JAX; on a processor it is told to look for no other device, unless it has been told already.

    Raises: ArtifactRefused naming the extra, if it is missing.
    """
    try:
        import jax
        import jax.export
    except ImportError as error:
        raise ArtifactRefused(
            "the artifact runs on JAX, which is not installed",
            where=str(where),
            hint="pip install 'tokc-compiler[xla]'"
            if platform == "cpu"
            else "pip install 'tokc-compiler[tpu]'",
        ) from error
    if platform == "cpu" and not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")
    return jax
