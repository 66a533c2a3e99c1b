"""Time the attention kernel alone: decode against the memory's bandwidth, prefill against the f32 peak.

    python bench/attention_kernel.py [--isa NAME] [--kv-dtype f16] [--threads 2]

A step is 30 launches over caches of their own, so that the pages come from memory as in a model. Prints
microseconds a launch, GB/s of keys and values read, and GFLOP/s.
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

LAYERS = 30
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


CASES = (
    Case("SmolLM2-135M decode", 9, 3, 64, 1, 1, 512),
    Case("SmolLM2-135M decode", 9, 3, 64, 1, 1, 4096),
    Case("SmolLM2-135M decode", 9, 3, 64, 16, 1, 512),
    Case("SmolLM2-135M prefill", 9, 3, 64, 1, 512, 512),
    Case("Llama-3.2-1B decode", 32, 8, 64, 1, 1, 512),
    Case("Llama-3.2-1B decode", 32, 8, 64, 1, 1, 4096),
    Case("Llama-3.2-1B prefill", 32, 8, 64, 1, 512, 512),
    Case("Gemma-3-1B decode", 4, 1, 256, 1, 1, 4096),
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
    """Return the shortest time of a launch over 60 steps."""
    operands = arrays(case, kernel, LAYERS, threads)
    pointers = []
    for layer in range(LAYERS):
        for name in kernel.args:
            array = operands[name]
            pointers.append(
                (array[layer] if name.startswith(("cache", "key", "value")) else array).ctypes.data
            )
    width = len(kernel.args)
    launches = np.array([(index, 0, layer * width, 0, 0, 0) for layer in range(LAYERS)], LAUNCH)
    table, rows = np.array(pointers, np.uint64), np.array([case.sequences * case.tokens, 0], np.int32)
    best = float("inf")
    for _ in range(60):
        start = time.perf_counter()
        library.tokc_step(pool, launches.ctypes.data, LAYERS, table.ctypes.data, rows.ctypes.data, None)
        best = min(best, time.perf_counter() - start)
    return best / LAYERS


def main() -> None:
    """Time every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=host_isa().name, choices=list(ISAS))
    parser.add_argument("--kv-dtype", default="f16", choices=list(ITEM_BYTES))
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    isa = ISAS[options.isa]
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
            context=case.context,
            quantize=False,
            keep_float=True,
        )
        for case in CASES
    ]
    symbols = sorted({kernel.symbol: kernel for kernel in kernels}.values(), key=lambda kernel: kernel.symbol)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step.so")
        path.write_bytes(link(symbols, compile_kernels(symbols, isa), isa))
        library = load_library(path)
    pool = library.tokc_open(options.threads)
    print(f"{isa.name}, {options.kv_dtype} cache, {options.threads} threads")
    for case, kernel in zip(CASES, kernels, strict=True):
        index = [each.symbol for each in symbols].index(kernel.symbol)
        spent = seconds(library, pool, kernel, case, index, options.threads)
        pairs = case.sequences * case.tokens * (case.context - (case.tokens - 1) / 2)
        gflops = 4 * pairs * case.heads * case.dim / spent / 1e9
        read = 2 * case.sequences * case.context * case.kv_heads * case.dim * ITEM_BYTES[options.kv_dtype]
        print(
            f"{case.name:22} {case.sequences:3} x {case.tokens:3} tokens at {case.context:5}: "
            f"{spent * 1e6:9.1f} us, {read / spent / 1e9:6.1f} GB/s, {gflops:6.1f} GFLOP/s"
        )
    library.tokc_close(pool)


if __name__ == "__main__":
    main()
