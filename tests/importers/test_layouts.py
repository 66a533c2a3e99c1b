"""Checkpoints whose weights are named, fused, turned or padded in other ways than Llama's."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.importers.running import logits
from tests.tiny_models import tiny_folder, tiny_model
from tokc.importers import load_folder

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))


def expected(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float().numpy()


def test_gpt2s_first_names_and_its_mask_buffers_are_read(tmp_path: Path) -> None:
    path = tiny_folder("gpt2", tmp_path) / "model.safetensors"
    weights = {name.removeprefix("transformer."): one for name, one in load_file(path).items()}
    weights["h.0.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.bool_))
    weights["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(weights, path)
    assert np.abs(logits(load_folder(tmp_path), IDS) - expected(tiny_model("gpt2"))).max() < 1e-4


def test_heads_whose_three_lie_together_are_taken_apart(tmp_path: Path) -> None:
    program = load_folder(tiny_folder("gpt_bigcode", tmp_path, multi_query=False))
    assert program.config.kv_heads == program.config.heads
    want = expected(tiny_model("gpt_bigcode", multi_query=False))
    assert np.abs(logits(program, IDS) - want).max() < 1e-4


def test_fused_weights_may_be_sharded_and_narrow(tmp_path: Path) -> None:
    program = load_folder(tiny_folder("phi4", tmp_path, shard="60KB", dtype="bfloat16"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert np.abs(logits(program, IDS) - expected(model)).max() < 1e-4


def test_a_bias_of_the_head_is_added(tmp_path: Path) -> None:
    path = tiny_folder("llama", tmp_path) / "model.safetensors"
    bias = np.random.default_rng(1).standard_normal(96).astype(np.float32)
    save_file({**load_file(path), "lm_head.bias": bias}, path)
    want = expected(tiny_model("llama")) + bias
    assert np.abs(logits(load_folder(tmp_path), IDS) - want).max() < 1e-4


def test_a_vocabulary_padded_beyond_the_tokenizers_keeps_its_rows(tmp_path: Path) -> None:
    program = load_folder(tiny_folder("granite", tmp_path, vocab_size=101))
    found = logits(program, IDS)
    assert found.shape[-1] == program.config.vocab == 101
    assert np.abs(found - expected(tiny_model("granite", vocab_size=101))).max() < 1e-4
