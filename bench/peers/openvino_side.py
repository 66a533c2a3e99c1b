"""OpenVINO's own runtime on the model that OpenVINO GenAI runs, driven step by step as its pipeline does.

The head sees the last token alone, as OpenVINO GenAI arranges it, unless a row asks for the logits of more.
OPENVINO_KV_CACHE_PRECISION chooses the cache: u8, which is the default, or f16.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from bench.spans import Side, Span, Tokens, main


class OpenVino:
    """A compiled stateful model and one request, whose state is the cache."""

    def __init__(self, path: str, span: Span, threads: int) -> None:
        """Load the model in the folder `path`."""
        core = ov.Core()
        model = core.read_model(Path(path) / "openvino_model.xml")
        if span.kind != "verify":
            _keep_last_token(model)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "KV_CACHE_PRECISION": os.environ.get("OPENVINO_KV_CACHE_PRECISION", "u8"),
        }
        compiled = core.compile_model(model, "CPU", settings)
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


def _keep_last_token(model: ov.Model) -> None:
    """Give the head the last token of its input [sequences, tokens, hidden]."""
    head = model.output("logits").get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    last = ops.gather(head.input_value(0), np.array([-1], np.int64), np.array(1, np.int64))
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


def load(path: str, span: Span, threads: int) -> Side:
    """Return OpenVINO with the model in the folder `path`."""
    return OpenVino(path, span, threads)


if __name__ == "__main__":
    main(load)
