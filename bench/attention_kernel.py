"""Time the attention kernel alone: decode against the memory's bandwidth, prefill against the f32 peak.

    python bench/attention_kernel.py [--isa NAME] [--kv-dtype f16] [--threads 2] [--only TEXT]

A step is as many launches as make their caches exceed the CPU's, so that pages come from memory as in a
model. Prints microseconds a launch, GB/s of keys and values read, and GFLOP/s.
"""

import argparse
import ctypes
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokc.runtime.executors.cpu import LAUNCH, load_library, usable_cores
from tokc.targets.cpu.codegen import compile_kernels
from tokc.targets.cpu.isa import ISAS, host_isa
from tokc.targets.cpu.kernels.paged_attention import PagedAttention
from tokc.targets.cpu.link import link

CACHE_BYTES = 192 << 20
STEPS, LEAST_LAYERS = 20, 4
PAGE = 16
ITEM_BYTES = {"f32": 4, "f16": 2, "int8": 1}
DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class Case:
    """`sequences` sequences, each with `tokens` new tokens at the end of `context` positions."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    sequences: int
    tokens: int
    context: int

    @property
    def description(self) -> str:
        """Return what it is, in words."""
        return f"{self.name:12} {self.sequences:3} x {self.tokens:3} tokens at {self.context:5}"

    def read_bytes(self, kv_dtype: str) -> int:
        """Return the size of the keys and values of all sequences."""
        return 2 * self.sequences * self.context * self.kv_heads * self.dim * ITEM_BYTES[kv_dtype]


SMOLLM2, LLAMA_1B, GEMMA_1B = (
    ("SmolLM2-135M", 9, 3, 64),
    ("Llama-3.2-1B", 32, 8, 64),
    ("Gemma-3-1B", 4, 1, 256),
)
STEPS_OF_A_MODEL = (
    (1, 1, 96),
    (1, 1, 512),
    (1, 1, 1900),
    (1, 1, 4096),
    (16, 1, 96),
    (16, 1, 512),
    (1, 4, 100),
    (1, 8, 104),
    (1, 512, 512),
    (1, 512, 4096),
)
CASES = (
    *(Case(*model, *step) for model in (SMOLLM2, LLAMA_1B) for step in STEPS_OF_A_MODEL),
    Case(*GEMMA_1B, 1, 1, 4096),
)


def arrays(case: Case, kernel: PagedAttention, layers: int, threads: int) -> dict[str, np.ndarray]:
    """Return the operands by name; caches hold all layers."""
    rng = np.random.default_rng(0)
    blocks = -(-case.context // PAGE)
    pages = blocks * case.sequences
    rows = case.sequences * case.tokens
    shape = (layers, pages, case.kv_heads, case.dim * PAGE)
    made: dict[str, np.ndarray] = {
        "q": rng.standard_normal((rows, case.heads * case.dim)).astype(np.float32),
        "scratch": np.zeros(kernel.scratch_bytes // 4 * threads, np.float32),
        "y": np.zeros((rows, case.heads * case.dim), np.float32),
        "positions": np.tile(np.arange(case.context - case.tokens, case.context), case.sequences).astype(
            np.int32
        ),
        "sequences": np.repeat(np.arange(case.sequences), case.tokens).astype(np.int32),
        "block_tables": rng.permutation(pages).astype(np.int32).reshape(case.sequences, blocks),
        "info": np.array([rows, 0, case.sequences, blocks], np.int32),
    }
    values = rng.standard_normal(1 << 16).astype(np.float32)
    for name in ("cache_key", "cache_value"):
        made[name] = np.resize(values * 8 if kernel.kv_dtype == "int8" else values, shape).astype(
            DTYPES[kernel.kv_dtype]
        )
    for name in ("key_scale", "value_scale"):
        made[name] = np.full((layers, pages, case.kv_heads, PAGE), 0.01, np.float32)
    return {name: aligned(array) for name, array in made.items()}


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins at a multiple of 64 bytes."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def seconds(
    library: ctypes.CDLL, pool: int, kernel: PagedAttention, case: Case, index: int, threads: int
) -> float:
    """Return the shortest time of a launch over all steps."""
    read = case.read_bytes(kernel.kv_dtype)
    layers = max(LEAST_LAYERS, -(-CACHE_BYTES // read))
    operands = arrays(case, kernel, layers, threads)
    pointers = []
    for layer in range(layers):
        for name in kernel.args:
            array = operands[name]
            pointers.append(
                (array[layer] if name.startswith(("cache", "key", "value")) else array).ctypes.data
            )
    width = len(kernel.args)
    launches = np.array([(index, 0, layer * width, 0, 0, 0) for layer in range(layers)], LAUNCH)
    table, rows = np.array(pointers, np.uint64), np.array([case.sequences * case.tokens, 0], np.int32)
    best = float("inf")
    for _ in range(STEPS):
        start = time.perf_counter()
        library.tokc_step(pool, launches.ctypes.data, layers, table.ctypes.data, rows.ctypes.data, None)
        best = min(best, time.perf_counter() - start)
    return best / layers


def main() -> None:
    """Time every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=host_isa().name, choices=list(ISAS))
    parser.add_argument("--kv-dtype", default="f16", choices=list(ITEM_BYTES))
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--only", default="", help="time the cases whose description has this text")
    options = parser.parse_args()
    isa = ISAS[options.isa]
    cases = [case for case in CASES if options.only in case.description]
    kernels = [
        PagedAttention(
            isa=isa,
            heads=case.heads,
            kv_heads=case.kv_heads,
            dim=case.dim,
            page=PAGE,
            kv_dtype=options.kv_dtype,
            scale=case.dim**-0.5,
            window=0,
            context=8192,
            quantize=False,
            keep_float=True,
        )
        for case in cases
    ]
    symbols = sorted({kernel.symbol: kernel for kernel in kernels}.values(), key=lambda kernel: kernel.symbol)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step.so")
        path.write_bytes(link(symbols, compile_kernels(symbols, isa), isa))
        library = load_library(path)
    pool = library.tokc_open(options.threads)
    print(f"{isa.name}, {options.kv_dtype} cache, {options.threads} threads")
    for case, kernel in zip(cases, kernels, strict=True):
        index = [each.symbol for each in symbols].index(kernel.symbol)
        spent = seconds(library, pool, kernel, case, index, options.threads)
        pairs = case.sequences * case.tokens * (case.context - (case.tokens - 1) / 2)
        gflops = 4 * pairs * case.heads * case.dim / spent / 1e9
        read = case.read_bytes(options.kv_dtype)
        print(
            f"{case.description}: "
            f"{spent * 1e6:9.1f} us, {read / spent / 1e9:6.1f} GB/s, {gflops:6.1f} GFLOP/s"
        )
    library.tokc_close(pool)


if __name__ == "__main__":
    main()
