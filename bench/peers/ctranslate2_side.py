"""CTranslate2 through its token iterator, which generates ahead in a thread; runs in its own environment."""

import json
from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import numpy as np

from bench.spans import OwnChoice, Side, Span, Tokens, main


class CTranslate2(OwnChoice):
    """An int8 model, and an iterator over the tokens that it generates."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model in the folder `path`."""
        self.model = ctranslate2.Generator(path, compute_type="int8", inter_threads=1, intra_threads=threads)
        self.words: list[str] = json.loads((Path(path) / "vocabulary.json").read_text())
        self.vocab = len(self.words)
        self.steps = span.context + 1 - span.prompt
        self.generated: Iterator[ctranslate2.GenerationStepResult] = iter(())

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        for _ in self.generated:
            pass  # what the last start left in its queue
        words = [[self.words[token] for token in prompt] for prompt in prompts]
        self.generated = self.model.generate_tokens(
            words, max_length=self.steps, min_length=self.steps, sampling_topk=1
        )
        return self.following(len(prompts))

    def following(self, sequences: int) -> Tokens:
        """Return the next token of every sequence."""
        return np.array([next(self.generated).token_id for _ in range(sequences)], np.int32)


def load(path: str, span: Span, threads: int) -> Side:
    """Return CTranslate2 with the model in the folder `path`."""
    return CTranslate2(path, span, threads)


if __name__ == "__main__":
    main(load)
