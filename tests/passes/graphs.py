"""Small programs from text with random weights, and tiny decoders of several families, made without torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from tokc.importers import import_model
from tokc.ir.execute import execute
from tokc.ir.program import Program
from tokc.ir.text import parse, render

HEADER = '<ir_version: 11, opset_import: ["": 23, "tokc": 1]>\n'
Arrays = dict[str, np.ndarray]
CONFIG: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32",
}  # fmt: skip
FAMILIES: Mapping[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False},
    "smollm2": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
                "num_key_value_heads": 4},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 3},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
}  # fmt: skip


def program(text: str) -> Program:
    """Parse a graph and give its weights random data, the same for the same name and shape."""
    parsed = parse(HEADER + text)
    for name, value in parsed.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if isinstance(tensor, ir.LazyTensor):
            random = np.random.default_rng(sum(name.encode()))
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            scale = 1.0 if tensor.dtype.is_floating_point() else 5.0
            array = np.abs(random.normal(size=shape) * scale)
            made = ir.tensor(array.clip(0, 15).astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=name)
            value.const_value = ir.LazyTensor(
                lambda made=made: made, dtype=made.dtype, shape=made.shape, name=name
            )
    return parsed


def body(after: Program) -> str:
    """Return the graph's text without the header."""
    text = render(after)
    return text[text.index(">\n") + 2 :].strip()


def agree(before: Program, after: Program, feeds: Arrays, tolerance: float = 1e-5) -> None:
    """Assert that two programs compute the same."""
    expected, found = execute(before, feeds), execute(after, feeds)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        assert np.isfinite(array).all()
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def random(*shape: int) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    return values


def decoder(family: str) -> Program:
    """Import a tiny random model of a family."""
    config = {**CONFIG, **FAMILIES[family]}
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(_weights(config), folder / "model.safetensors")
        program = import_model(folder)
        for value in program.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
        return program


def _weights(config: Mapping[str, Any]) -> Arrays:
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim, width = config["head_dim"], config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for part, rows in (("q", width), ("k", kv), ("v", kv)):
            shapes[f"{prefix}self_attn.{part}_proj.weight"] = (rows, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{prefix}self_attn.{part}_proj.bias"] = (rows,)
        if config["model_type"] == "qwen3":
            shapes |= {f"{prefix}self_attn.{part}_norm.weight": (dim,) for part in "qk"}
        shapes[f"{prefix}self_attn.o_proj.weight"] = (hidden, width)
        shapes |= {f"{prefix}mlp.{part}_proj.weight": (wide, hidden) for part in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, wide)
        shapes |= {f"{prefix}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    rng = np.random.default_rng(0)
    return {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def decoder_feeds(program: Program, *, batch: int = 2, seq: int = 3, past: int = 4) -> Arrays:
    """Make inputs of a step after `past` random tokens."""
    rng, config = np.random.default_rng(1), program.config
    feeds = {
        "input_ids": rng.integers(0, config.vocab, (batch, seq)),
        "position_ids": np.tile(np.arange(past, past + seq), (batch, 1)),
    }
    shape = (batch, config.kv_heads, past, config.head_dim)
    for layer in range(config.layers):
        for kind in ("key", "value"):
            feeds[f"past_key_values.{layer}.{kind}"] = rng.normal(size=shape).astype(np.float32)
    return feeds
