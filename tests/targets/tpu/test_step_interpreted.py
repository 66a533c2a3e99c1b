"""A TPU's whole step on this machine: its weights and cache as a TPU has them, its kernels interpreted."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.targets.tpu.interpreted import interpret_kernels
from tests.tiny_models import tiny_folder
from tokc.importers import import_model
from tokc.pipeline import Pipeline
from tokc.quality.divergence import divergence, logits
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.xla import Bucket as SizeOf
from tokc.runtime.executors.xla import four_bits, padded
from tokc.targets.base import Precision
from tokc.targets.tpu.describe import Described, describe, tpu_platform
from tokc.targets.tpu.function import arguments, function_of
from tokc.targets.tpu.step import Bucket
from tokc.targets.tpu.target import pipeline

PAGES, CONTEXT = 6, 48
TOKENS = 16
Array = Any


def loaded(described: Described) -> dict[str, Array]:
    """Return the weights as a TPU's executor hands them over."""
    stored = {tensor.name: tensor.load() for tensor in described.tensors}
    kinds = {weight.name: weight.dtype for weight in described.step.weights}
    return {
        name: jnp.asarray(four_bits(array, jnp.dtype(kinds[name])) if "int4" in kinds[name] else array)
        for name, array in stored.items()
    }


@pytest.mark.parametrize("weights", ["int4", pytest.param("f16", marks=pytest.mark.slow)])
def test_prefill_and_decode_answer_as_the_program_as_far_as_bfloat16_goes(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpret_kernels(monkeypatch)
    precision = Precision(weights, 32, "f16")
    sizes = {"num_hidden_layers": 1, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    model = tiny_folder("llama", tmp_path / "model", **sizes, tie_word_embeddings=True)
    program = Pipeline.parse(pipeline(precision)).run(import_model(model))
    described = describe(program, tpu_platform(1), CONTEXT, (Bucket(TOKENS, TOKENS),))
    step = described.step
    assert (step.attention, step.cache.kv_heads, step.cache.dim) == ("pallas", 4, 128)
    parameters, shapes = loaded(described), arguments(step, step.buckets[0], PAGES)[1]
    caches = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    assert {name: array.shape for name, array in parameters.items()} == {
        weight.name: weight.shape for weight in step.weights
    }
    run = jax.jit(function_of(step))
    ids = np.random.default_rng(0).integers(0, 96, (2, 10)).astype(np.int32)
    tables = np.array([[4], [1]], np.int32)
    found = []
    for start, end in [(0, 7), (7, 8), (8, 9), (9, 10)]:
        positions = np.tile(np.arange(start, end, dtype=np.int32), 2)
        sequences = np.repeat(np.arange(2, dtype=np.int32), end - start)
        rows = np.arange(len(positions), dtype=np.int32)
        batch = Batch(ids[:, start:end].reshape(-1), positions, sequences, tables, rows)
        answer, caches = run(
            parameters, caches, *padded(batch, SizeOf(TOKENS, TOKENS, ""), step.cache.blocks)
        )
        found.append(np.asarray(answer)[: len(rows)].reshape(2, end - start, -1))
    expected = logits(program, ids, cached_from=7)
    measured = divergence(expected, np.concatenate(found, 1))
    assert measured.kl_mean < 1e-4
    assert measured.max_abs_logit_diff < 0.03 * np.abs(expected).max()
