"""llama.cpp, through the C functions that llama-cpp-python binds; runs in that package's own environment."""

import sys
from collections.abc import Sequence

import llama_cpp
import numpy as np

from bench.spans import Side, Span, Tokens, main

BATCH_TOKENS = 512
MARGIN_TOKENS = 16


class LlamaCpp:
    """A model and a context with an f16 cache; everything else is llama.cpp's default."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model at `path`."""
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert model, f"llama.cpp cannot load '{path}'"
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = span.sequences * (span.context + MARGIN_TOKENS)
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = span.sequences
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_init_from_model(model, settings)
        assert self.context, "llama.cpp made no context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        batch = self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        view = lambda pointer: np.ctypeslib.as_array(pointer, (BATCH_TOKENS,))  # noqa: E731 - used five times here
        self.tokens, self.positions, self.wanted = view(batch.token), view(batch.pos), view(batch.logits)
        view(batch.n_seq_id)[:] = 1

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        llama_cpp.llama_memory_clear(self.memory, False)  # noqa: FBT003 - a C function
        return np.array([self._prompt(sequence, prompt) for sequence, prompt in enumerate(prompts)], np.int32)

    def step(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        rows = range(len(tokens))
        return self._run(tokens, np.full_like(tokens, position), rows, rows)

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        """Run tokens of sequence 0 from `position` on; returns the greedy next token after each of them."""
        rows = range(len(tokens))
        return self._run(tokens, np.arange(position, position + len(tokens)), [0] * len(tokens), rows)

    def _prompt(self, sequence: int, tokens: Tokens) -> int:
        found: Tokens = tokens[:0]
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[start : start + BATCH_TOKENS]
            rows = [len(part) - 1] if start + len(part) == len(tokens) else []
            found = self._run(part, np.arange(start, start + len(part)), [sequence] * len(part), rows)
        return int(found[0])

    def _run(
        self, tokens: Tokens, positions: Tokens, sequences: Sequence[int], rows: Sequence[int]
    ) -> Tokens:
        count = self.batch.n_tokens = len(tokens)
        self.tokens[:count], self.positions[:count], self.wanted[:count] = tokens, positions, 0
        self.wanted[list(rows)] = 1
        for at, sequence in enumerate(sequences):
            self.batch.seq_id[at][0] = sequence
        status = llama_cpp.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"
        if not rows:
            return tokens[:0]
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(rows), self.vocab))
        return logits.argmax(axis=1).astype(np.int32)


def load(path: str, span: Span, threads: int) -> Side:
    """Return llama.cpp with the GGUF file at `path`."""
    return LlamaCpp(path, span, threads)


def requantize(source: str, destination: str) -> None:
    """Write `source` as Q4_0, every tensor of it, as llama.cpp rounds."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.allow_requantize = settings.pure = True
    status = llama_cpp.llama_model_quantize(source.encode(), destination.encode(), settings)
    assert status == 0, f"llama_model_quantize returned {status}"


if __name__ == "__main__":
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    if sys.argv[1] == "requantize":
        requantize(*sys.argv[2:])
    else:
        main(load)
