"""An artifact for GPUs with a small model by hand, whose answers numpy can work out.

A row's logits are the gated activation of its token, plus a bias, plus the sum of the ids in its context.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import Tensor, compact_json, write_files, write_safetensors
from tokc.runtime.artifact import MANIFEST, WEIGHTS, Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.manifest import FileInfo, KvInfo, LimitsInfo, Manifest, ModelInfo, TargetInfo
from tokc.targets.gpu.kernels.gated_activation import GatedActivation
from tokc.targets.gpu.kernels.sampling import ArgMax
from tokc.targets.plan import Axis, Buffer, Grid, Launch, Operand, Plan

WIDTH, VOCAB, STRIDE, PAGE, CONTEXT = 16, 14, 32, 4, 64
LIMITS = {
    "tokens": 40,
    "rows": 8,
    "seqs": 8,
    "blocks": CONTEXT // PAGE,
    "context": CONTEXT,
    "narrow_tokens": 16,
    "narrow_tile": 4,
    "wide_tile": 8,
    "tiles": 16,
    "split": 8,
    "splits": 8,
}


@dataclass(frozen=True)
class SmallKernel:
    """A specialization of one of the functions in gpu_functions."""

    symbol: str
    name: str
    args: tuple[tuple[str, str], ...]
    grid: Grid
    constants: Mapping[str, int | float | bool | str]
    warps: int = 4
    stages: int = 1
    tensor_cores: bool = False

    def function(self) -> Any:
        from tests.runtime import gpu_functions

        return getattr(gpu_functions, self.name)


def _args(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, dtype) for name, dtype in (part.split(":") for part in text.split()))


def _remember(word: str) -> SmallKernel:
    return SmallKernel(
        f"remember_{word}",
        "remember",
        _args("input_ids:i32 positions:i32 sequences:i32 block_tables:i32 query_tiles:i32 info:i32 kv:i32"),
        (Axis("tiles"),),
        {"TILE": LIMITS[f"{word}_tile"], "PAGE": PAGE},
    )


KERNELS = (
    SmallKernel(
        "embed",
        "embed",
        _args("input_ids:i32 info:i32 table:f16 x:f16"),
        (Axis("tokens"),),
        {"WIDTH": STRIDE},
    ),
    GatedActivation(WIDTH, STRIDE, "silu"),
    _remember("narrow"),
    _remember("wide"),
    SmallKernel(
        "recall",
        "recall",
        _args("positions:i32 sequences:i32 block_tables:i32 logit_rows:i32 info:i32 kv:i32 parts:i32"),
        (Axis("rows"), Axis("splits")),
        {"SPLIT": LIMITS["split"], "SPLITS": LIMITS["splits"], "PAGE": PAGE},
    ),
    SmallKernel(
        "head",
        "head",
        _args("y:f16 parts:i32 logit_rows:i32 info:i32 bias:f32 logits:f32"),
        (Axis("rows"),),
        {"WIDTH": WIDTH, "SPLITS": LIMITS["splits"], "LOGITS_STRIDE": WIDTH},
    ),
    ArgMax(VOCAB, WIDTH),
)
# Kernels of the compiler's call their operands by names of their own.
OPERANDS = {KERNELS[1].symbol: ("x", "info", "y"), KERNELS[-1].symbol: ("logits", "info", "likeliest")}


def weights() -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(2)
    return {
        "unused": rng.integers(0, 9, 100, np.uint8),
        "table": rng.normal(0, 1, (VOCAB, STRIDE)).astype(np.float16),
        "bias": rng.normal(0, 1, WIDTH).astype(np.float32),
    }


def plan() -> Plan:
    tokens = {"input_ids": ("tokens",), "positions": ("tokens",), "sequences": ("tokens",)}
    inputs = {
        **tokens,
        "block_tables": ("seqs", "blocks"),
        "logit_rows": ("rows",),
        "info": (8,),
        "query_tiles": ("tiles", 2),
    }
    buffers = (
        *(Buffer(name, "weights", dtype, shape) for name, dtype, shape in _WEIGHTS),
        *(Buffer(name, "input", "i32", shape) for name, shape in inputs.items()),
        Buffer("x", "arena", "f16", ("tokens", STRIDE), 0),
        Buffer("y", "arena", "f16", ("tokens", WIDTH), 4096),
        Buffer("parts", "arena", "i32", ("rows", LIMITS["splits"]), 8192),
        Buffer("kv", "kv", "i32", ("pages", PAGE)),
        Buffer("logits", "output", "f32", ("rows", WIDTH)),
        Buffer("likeliest", "output", "i32", ("rows", 1)),
    )
    return Plan(
        limits=LIMITS,
        kernels=tuple(kernel.symbol for kernel in KERNELS),
        buffers=buffers,
        launches=tuple(_launch(kernel) for kernel in KERNELS),
        arena_bytes=8192 + 4 * LIMITS["rows"] * LIMITS["splits"],
    )


_WEIGHTS = (("table", "f16", (VOCAB, STRIDE)), ("bias", "f32", (WIDTH,)))


def _launch(kernel: Any) -> Launch:
    names = OPERANDS.get(kernel.symbol, [name for name, _ in kernel.args])
    word = kernel.symbol.removeprefix("remember_")
    return Launch(
        kernel=kernel.symbol,
        operands=tuple(Operand(name) for name in names),
        rows="tokens",
        op=kernel.symbol,
        layer=None,
        grid=kernel.grid,
        steps=word if word in {"narrow", "wide"} else "all",
    )


def launch_abi(**changes: Any) -> dict[str, Any]:
    """Return what kernels.json holds; `changes` replace keys of every kernel."""
    return {
        "schema_version": 1,
        "backend": "cuda",
        "arch": "sm_80",
        "kernels": [
            {
                "symbol": kernel.symbol,
                "entry": kernel.function().__name__,
                "file": f"kernels/{kernel.symbol}.cubin",
                "ptx": f"kernels/{kernel.symbol}.ptx",
                "warps": kernel.warps,
                "threads": kernel.warps * 32,
                "shared_bytes": 1024 * at,
                "parameters": [dtype for _, dtype in kernel.args],
                "scratch_pointers": 2,
                "cluster": 1,
                **changes,
            }
            for at, kernel in enumerate(KERNELS)
        ],
    }


def write_gpu_artifact(
    folder: Path, *, abi: Mapping[str, Any] | None = None, target: str = ".target sm_80"
) -> Artifact:
    """Write the model's artifact; its code is the names of the kernels, its PTX says `target`."""
    folder.mkdir()
    abi = launch_abi() if abi is None else abi
    files = {"plan.json": compact_json(plan().to_json()), "kernels/kernels.json": compact_json(abi)}
    for kernel in abi["kernels"]:
        files[kernel["file"]] = b"\x7fELF" + kernel["symbol"].encode()
        if kernel.get("ptx"):
            files[kernel["ptx"]] = f"// {kernel['symbol']}\n{target}\n".encode()
    tensors = [
        Tensor(name, _DTYPES[array.dtype.name], array.shape, array.nbytes, lambda array=array: array)
        for name, array in weights().items()
    ]
    digest = write_safetensors(folder / WEIGHTS, tensors)
    entries = {WEIGHTS: FileInfo(digest, (folder / WEIGHTS).stat().st_size), **write_files(folder, files)}
    manifest = Manifest(
        tokc_version="0",
        name="small",
        target=TargetInfo("cuda" if abi["backend"] == "cuda" else "rocm", abi["arch"], abi["arch"], (), ""),
        model=ModelInfo("llama", 8, 1, 1, 1, 8, 8, VOCAB),
        kv=KvInfo(PAGE, "f16", 1, 1, 8),
        limits=LimitsInfo(CONTEXT, LIMITS["tokens"], LIMITS["rows"]),
        files=entries,
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    return Artifact.open(folder)


_DTYPES = {"uint8": "u8", "float16": "f16", "float32": "f32"}


@dataclass
class Pages:
    """Deals pages to sequences, far apart, and makes batches of `(sequence, position, id)`."""

    num_pages: int
    seqs: int = 4

    def __post_init__(self) -> None:
        order = np.random.default_rng(3).permutation(self.num_pages)
        self.tables = order[: self.seqs * LIMITS["blocks"]].reshape(self.seqs, LIMITS["blocks"])
        self.said: dict[int, list[int]] = {}

    def batch(self, chunks: Mapping[int, Iterable[int]], rows: Iterable[int] | None = None) -> Batch:
        """Return the step in which each sequence goes on with some ids; `rows` None for every last token."""
        ids, positions, sequences, last = [], [], [], []
        for sequence, chunk in chunks.items():
            before = self.said.setdefault(sequence, [])
            for token in chunk:
                ids.append(token)
                positions.append(len(before))
                sequences.append(sequence)
                before.append(token)
            last.append(len(ids) - 1)
        arrays = [np.array(values, np.int32) for values in (ids, positions, sequences)]
        # A view, as the scheduler's tables are.
        tables = np.zeros((self.seqs, LIMITS["blocks"] + 3), np.int32)
        tables[:, : LIMITS["blocks"]] = self.tables
        wanted = last if rows is None else list(rows)
        return Batch(*arrays, tables[:, : LIMITS["blocks"]], np.array(wanted, np.int32))

    def expected(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Return the logits f64[rows, vocab] of a batch that was made last."""
        gate_up = weights()["table"].astype(np.float64)[batch.input_ids[batch.logit_rows]]
        gate, up = gate_up[:, :WIDTH], gate_up[:, WIDTH:]
        found = gate / (1 + np.exp(-gate)) * up + weights()["bias"]
        for at, row in enumerate(batch.logit_rows):
            found[at] += sum(self.said[int(batch.sequences[row])][: batch.positions[row] + 1])
        return found[:, :VOCAB]
