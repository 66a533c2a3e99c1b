"""The real model against transformers, and the int4 build against the f32 build."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tokc
from tests.conftest import BuiltModel
from tokc.quality.divergence import divergence
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.cpu import CpuExecutor

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())
CASES = REFERENCE["cases"]
ROWS_AT_ONCE = 64
MOST_KL = 0.01


def test_the_f32_build_chooses_the_tokens_that_transformers_chooses(smollm2_f32: BuiltModel) -> None:
    with tokc.load(smollm2_f32.path) as engine:
        prompts = [case["prompt"] for case in CASES]
        found = engine.generate_all(prompts, max_tokens=REFERENCE["new_tokens"], ignore_eos=True)
        ids = [engine.tokenizer.encode(prompt) for prompt in prompts]
    assert ids == [case["prompt_ids"] for case in CASES]
    assert [list(result.token_ids) for result in found] == [case["tokens"] for case in CASES]


def test_the_int4_build_stays_close_to_the_f32_build(
    smollm2_f32: BuiltModel, smollm2_int4: BuiltModel, figure: Callable[[str], None]
) -> None:
    texts = [case["prompt_ids"] + case["tokens"] for case in CASES]
    found = divergence(every_logit(smollm2_f32.path, texts), every_logit(smollm2_int4.path, texts))
    figure(
        f"SmolLM2 int4 (its own grid, int8 activations, f16 cache) to f32: KL mean {found.kl_mean:.5f},"
        f" p99 {found.kl_p99:.5f} nats,"
        f" same top token {found.top1_agree:.2%}, {found.positions} positions"
    )
    assert found.kl_mean < MOST_KL


def every_logit(path: Path, texts: list[list[int]]) -> np.ndarray:
    """Return the logits of every position of every text."""
    executor = CpuExecutor.open(Artifact.open(path))
    parts = []
    for text in texts:
        table = np.arange(-(-len(text) // executor.page_size), dtype=np.int32)[None]
        for start in range(0, len(text), ROWS_AT_ONCE):
            ids = np.array(text[start : start + ROWS_AT_ONCE], np.int32)
            rows = np.arange(len(ids), dtype=np.int32)
            parts.append(executor.step(Batch(ids, rows + start, np.zeros_like(rows), table, rows)).copy())
    executor.close()
    return np.concatenate(parts)
