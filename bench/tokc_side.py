"""tokc's executor, driven without its scheduler, as the other side is driven without a server."""

import sys
from pathlib import Path

import numpy as np

from bench.spans import Side, Span, Tokens, main
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

CONTEXT = 2048


class Tokc:
    """An artifact and pages enough for every sequence."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the artifact at `path`, its hashes checked as a server does."""
        artifact = Artifact.open(path)
        self.executor = CpuExecutor.open(artifact, threads=threads)
        self.vocab = self.executor.vocab_size
        blocks = -(-(span.context + 1) // self.executor.page_size)
        self.tables = np.arange(max(1, span.sequences) * blocks, dtype=np.int32).reshape(-1, blocks)
        assert self.tables.size <= self.executor.num_pages, "the cache is too small for this row"

    def prefill(self, sequence: int, tokens: Tokens) -> int:
        """Run a prompt from position 0 on; returns the greedy next token."""
        positions = np.arange(len(tokens), dtype=np.int32)
        step = self.executor.max_tokens
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            count = len(tokens[part])
            last = start + count == len(tokens)
            rows = np.array([count - 1] if last else [], np.int32)
            sequences = np.full(count, sequence, np.int32)
            logits = self.executor.step(Batch(tokens[part], positions[part], sequences, self.tables, rows))
        return int(logits[0].argmax())

    def decode(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        rows = np.arange(len(tokens), dtype=np.int32)
        logits = self.executor.step(Batch(tokens, np.full_like(rows, position), rows, self.tables, rows))
        return logits.argmax(axis=1).astype(np.int32)

    def rewind(self, position: int) -> None:
        """Do nothing: a position that is written again replaces what it held."""


def load(path: str, span: Span, threads: int) -> Side:
    """Return tokc with the artifact at `path`."""
    return Tokc(path, span, threads)


def build(model: str, out: str) -> None:
    """Build the artifact `out` of `model` on the model's own grid, for this CPU."""
    from tokc.compiler import Request
    from tokc.compiler import build as compile_model

    compile_model(Request(Path(model), context=CONTEXT, check=False), Path(out))


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(*sys.argv[2:])
    else:
        main(load)
