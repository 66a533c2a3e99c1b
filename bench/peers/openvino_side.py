"""OpenVINO GenAI's pipeline with a paged cache, step by step: the fastest of its ways here.

Several tokens of one sequence with a row of logits each are no step of that pipeline; for them OpenVINO's own
runtime runs the same model, with its state as the cache. OPENVINO_SETTINGS adds properties, as JSON.
"""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino_genai as genai

from bench.spans import OwnChoice, Side, Span, Tokens, main

BLOCK_TOKENS = 32
STEP_TOKENS = 8192


def _settings(threads: int) -> dict[str, str | int]:
    added = json.loads(os.environ.get("OPENVINO_SETTINGS", "{}"))
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **added}


class Paged(OwnChoice):
    """A pipeline, which chooses the greedy tokens itself, and the requests of the last start."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model in the folder `path`."""
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = span.sequences
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.num_kv_blocks = span.sequences * (span.context // BLOCK_TOKENS + 2)
        self.pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", _settings(threads))
        self.vocab = len(self.pipeline.get_tokenizer().get_vocab())
        self.config = genai.GenerationConfig()
        self.config.max_new_tokens = self.config.min_new_tokens = span.context + 1 - span.prompt
        self.config.ignore_eos, self.config.do_sample = True, False
        self.requests: list[genai.GenerationHandle] = []
        self.started = 0

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        for request in self.requests:
            request.stop()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        ids = range(self.started, self.started + len(prompts))
        self.started += len(prompts)
        tensors = [ov.Tensor(prompt[None].astype(np.int64)) for prompt in prompts]
        self.requests = [
            self.pipeline.add_request(request, tensor, self.config)
            for request, tensor in zip(ids, tensors, strict=True)
        ]
        return self.following(len(prompts))

    def following(self, sequences: int) -> Tokens:  # noqa: ARG002 - its requests tell
        """Return the next token of every sequence."""
        self.pipeline.step()
        outputs = [next(iter(request.read().values())) for request in self.requests]
        return np.array([output.generated_ids[-1] for output in outputs], np.int32)


class Stateful:
    """A compiled model and one request, whose state is the cache."""

    def __init__(self, path: str, threads: int) -> None:
        """Load the model in the folder `path`."""
        compiled = ov.Core().compile_model(Path(path) / "openvino_model.xml", "CPU", _settings(threads))
        self.vocab = compiled.output("logits").partial_shape[2].get_length()
        self.request = compiled.create_infer_request()

    def start(self, prompts: Tokens) -> Tokens:
        """Forget everything and run prompts i32[sequences, n]; returns each one's greedy next token."""
        self.request.reset_state()
        return self._run(prompts, 0)[:, -1]

    def step(self, tokens: Tokens, position: int) -> Tokens:
        """Run token i of sequence i at `position`; returns the greedy next tokens."""
        return self._run(tokens[:, None], position)[:, -1]

    def verify(self, tokens: Tokens, position: int) -> Tokens:
        """Run tokens of sequence 0 from `position` on; returns the greedy next token after each of them."""
        return self._run(tokens[None], position)[0]

    def _run(self, tokens: Tokens, position: int) -> Tokens:
        sequences, count = tokens.shape
        inputs: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": tokens.astype(np.int64),
            "attention_mask": np.ones((sequences, position + count), np.int64),
            "position_ids": np.broadcast_to(np.arange(position, position + count), tokens.shape).copy(),
            "beam_idx": np.arange(sequences, dtype=np.int32),
        }
        self.request.infer(inputs, share_inputs=True, share_outputs=True)
        return self.request.get_tensor("logits").data.argmax(axis=2).astype(np.int32)


def load(path: str, span: Span, threads: int) -> Side:
    """Return OpenVINO with the model in the folder `path`."""
    return Stateful(path, threads) if span.kind == "verify" else Paged(path, span, threads)


if __name__ == "__main__":
    main(load)
