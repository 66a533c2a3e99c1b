"""tokc's executor, driven without its scheduler, as the other side is driven without a server."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.spans import Side, Span, Tokens, main
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

# Above 4096 tokens and what is decoded after them.
CONTEXT = 4608
READ_BYTES = 1 << 29
# What reads its weights whole in every step; of the embedding and the rotation a step reads a few rows.
WEIGHT_OPS = {"QuantLinear", "Linear", "AddRmsNorm", "RMSNormalization"}
ITEM_BYTES = {"u8": 1, "i8": 1, "f16": 2, "f32": 4}


class Tokc:
    """An artifact and pages enough for every sequence."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the artifact at `path`, its hashes checked as a server does."""
        artifact = Artifact.open(path)
        self.executor = CpuExecutor.open(artifact, threads=threads)
        self.vocab = self.executor.vocab_size
        blocks = -(-(span.context + 1) // self.executor.page_size)
        self.tables = np.arange(span.sequences * blocks, dtype=np.int32).reshape(-1, blocks)
        assert self.tables.size <= self.executor.num_pages, "the cache is too small for this row"

    def start(self, prompts: Tokens) -> Tokens:
        """Run prompts i32[sequences, n] from position 0 on; returns each one's greedy next token."""
        return np.array([self._prompt(sequence, prompt) for sequence, prompt in enumerate(prompts)], np.int32)

    def step(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        rows = np.arange(len(tokens), dtype=np.int32)
        return self._run(tokens, np.full_like(rows, position), rows, rows)

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        """Run tokens of sequence 0 from `position` on; returns the greedy next token after each of them."""
        rows = np.arange(len(tokens), dtype=np.int32)
        return self._run(tokens, rows + np.int32(position), np.zeros_like(rows), rows)

    def _prompt(self, sequence: int, tokens: Tokens) -> int:
        found = tokens[:0]
        for start in range(0, len(tokens), self.executor.max_tokens):
            part = tokens[start : start + self.executor.max_tokens]
            last = start + len(part) == len(tokens)
            rows = np.array([len(part) - 1] if last else [], np.int32)
            positions = np.arange(start, start + len(part), dtype=np.int32)
            found = self._run(part, positions, np.full_like(positions, sequence), rows)
        return int(found[0])

    def _run(self, tokens: Tokens, positions: Tokens, sequences: Tokens, rows: Tokens) -> Tokens:
        self.executor.step(Batch(tokens, positions, sequences, self.tables, rows))
        return self.executor.likeliest.copy()


def roof(side: Side, span: Span) -> dict[str, Any]:
    """Return what bounds a decode step: the bytes that it must read, and how fast memory gives them."""
    assert isinstance(side, Tokc), "tokc's own side"
    executor = side.executor
    weights = {
        buffer
        for launch in executor.plan["launches"]
        for buffer, _ in launch["operands"]
        if launch["op"] in WEIGHT_OPS
    }
    buffers = [
        b for at, b in enumerate(executor.plan["buffers"]) if at in weights and b["space"] == "weights"
    ]
    held = span.context - span.repeats * span.tokens / 2
    cache_bytes = span.sequences * held * executor.kv_bytes_per_page / executor.page_size
    return {
        "step_bytes": sum(math.prod(b["shape"]) * ITEM_BYTES[b["dtype"]] for b in buffers) + cache_bytes,
        "read_bytes_per_s": executor.read_bandwidth(size_bytes=READ_BYTES),
    }


def load(path: str, span: Span, threads: int) -> Side:
    """Return tokc with the artifact at `path`."""
    return Tokc(path, span, threads)


def build(model: str, out: str, target: str) -> None:
    """Build the artifact `out` of `model` for `target`: its codes of 4 bits, its scales rounded to 8 bits."""
    from tokc.compiler import DEFAULT_PRECISION, Request
    from tokc.compiler import build as compile_model
    from tokc.targets.table import named_target

    usual = named_target(target).pipeline(DEFAULT_PRECISION)
    passes = usual.replace("quantize-weights{", "quantize-weights{requantize=true head_bits=4 ")
    assert passes != usual, "the target quantizes weights"
    compile_model(Request(Path(model), target, passes=passes, context=CONTEXT, check=False), Path(out))


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(*sys.argv[2:])
    else:
        main(load, roof)
