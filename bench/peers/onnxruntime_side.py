"""ONNX Runtime GenAI through its generator, which chooses the token itself; runs in its own environment."""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from bench.spans import OwnChoice, Side, Span, Tokens, main


class OnnxRuntime(OwnChoice):
    """A model, and a generator for each start."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model in the folder `path`."""
        config = og.Config(path)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        facts = json.loads((Path(path) / "genai_config.json").read_text())
        self.vocab = int(facts["model"]["vocab_size"])
        self.context = span.context + 1
        self.generator: og.Generator | None = None

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        settings = og.GeneratorParams(self.model)
        # A sequence that may not end before the context does is never stopped by an end token.
        settings.set_search_options(
            batch_size=len(prompts), max_length=self.context, min_length=self.context, do_sample=False
        )
        self.generator = None
        self.generator = og.Generator(self.model, settings)
        self.generator.append_tokens(prompts)
        return self.following(len(prompts))

    def following(self, sequences: int) -> Tokens:
        """Return the next token of every sequence."""
        assert self.generator is not None, "a step before the start"
        self.generator.generate_next_token()
        return np.array([self.generator.get_sequence(i)[-1] for i in range(sequences)], np.int32)


def load(path: str, span: Span, threads: int) -> Side:
    """Return ONNX Runtime GenAI with the model in the folder `path`."""
    return OnnxRuntime(path, span, threads)


if __name__ == "__main__":
    main(load)
