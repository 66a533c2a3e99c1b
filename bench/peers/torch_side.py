"""PyTorch in bfloat16, eager, through transformers; runs in its own environment."""

import numpy as np
import torch
import transformers

from bench.spans import Side, Span, Tokens, main


class Torch:
    """A model and the cache that it grows."""

    def __init__(self, path: str, span: Span, threads: int) -> None:  # noqa: ARG002 - its cache grows
        """Load the model in the folder `path`."""
        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.vocab = int(self.model.config.vocab_size)
        self.cache = transformers.DynamicCache(config=self.model.config)

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        self.cache = transformers.DynamicCache(config=self.model.config)
        return self._run(prompts, rows=1)[:, -1]

    def step(self, tokens: Tokens, position: int) -> Tokens:  # noqa: ARG002 - its cache knows where it is
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        return self._run(tokens[:, None], rows=1)[:, -1]

    def verify(self, tokens: Tokens, position: int) -> Tokens:  # noqa: ARG002 - its cache knows where it is
        """Run tokens of sequence 0 from `position` on; returns the greedy next token after each of them."""
        return self._run(tokens[None], rows=len(tokens))[0]

    @torch.inference_mode()
    def _run(self, tokens: Tokens, rows: int) -> Tokens:
        ids = torch.from_numpy(tokens.astype(np.int64))
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=rows)
        return out.logits.argmax(-1).numpy().astype(np.int32)


def load(path: str, span: Span, threads: int) -> Side:
    """Return PyTorch with the model in the folder `path`."""
    return Torch(path, span, threads)


if __name__ == "__main__":
    main(load)
