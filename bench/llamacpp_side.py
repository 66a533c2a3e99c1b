"""llama.cpp, through the C functions that llama-cpp-python binds; runs in that package's own environment."""

import sys

import llama_cpp
import numpy as np

from bench.spans import Side, Span, Tokens, main

BATCH_TOKENS = 512
MARGIN_TOKENS = 16
LAST_POSITION = -1


class LlamaCpp:
    """A model and a context with an f16 cache; everything else is llama.cpp's default."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model at `path`."""
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert model, f"llama.cpp cannot load '{path}'"
        settings = llama_cpp.llama_context_default_params()
        sequences = max(1, span.sequences)
        settings.n_ctx = sequences * (span.context + MARGIN_TOKENS)
        settings.n_batch = settings.n_ubatch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        settings.n_seq_max = sequences
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.context = llama_cpp.llama_init_from_model(model, settings)
        assert self.context, "llama.cpp made no context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.sequences = sequences
        batch = self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        view = lambda pointer: np.ctypeslib.as_array(pointer, (BATCH_TOKENS,))  # noqa: E731 - used five times here
        self.tokens, self.positions, self.wanted = view(batch.token), view(batch.pos), view(batch.logits)
        view(batch.n_seq_id)[:] = 1

    def prefill(self, sequence: int, tokens: Tokens) -> int:
        """Run a prompt from position 0 on; returns the greedy next token."""
        count = len(tokens)
        self.tokens[:count], self.positions[:count] = tokens, np.arange(count)
        self.wanted[:count] = 0
        self.wanted[count - 1] = 1
        for row in range(count):
            self.batch.seq_id[row][0] = sequence
        return int(self._run(count, 1)[0])

    def decode(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        count = len(tokens)
        self.tokens[:count], self.positions[:count], self.wanted[:count] = tokens, position, 1
        for row in range(count):
            self.batch.seq_id[row][0] = row
        return self._run(count, count)

    def rewind(self, position: int) -> None:
        """Forget what all sequences hold from `position` on."""
        for sequence in range(self.sequences):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, position, LAST_POSITION)

    def _run(self, count: int, rows: int) -> Tokens:
        self.batch.n_tokens = count
        status = llama_cpp.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (rows, self.vocab))
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
