"""Every family, lowered to machine code: the artifact's answers equal those of the program in onnxruntime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.targets.cpu.chunks import answers
from tests.tiny_models import FAMILIES, tiny_folder
from tokc.compiler import Request, build, precision
from tokc.quality.divergence import logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor

TOKENS = 40
MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}
# (weights, cache): the first is exact up to the order of f32 sums; the others also round where the program
# does.
PRECISIONS = {("f32", "f32"): 2e-4, ("int8", "f16"): 0.05, ("int4", "int8"): 0.1}


def cases() -> Iterator[object]:
    """Yield every family at every precision: each in f32, a third at one of the others; the rest is slow."""
    for index, family in enumerate(FAMILIES):
        for at, precisions in enumerate(PRECISIONS):
            usual = at == 0 or (index % 3 == 0 and at == 1 + index // 3 % 2)
            yield pytest.param(family, *precisions, marks=[] if usual else pytest.mark.slow)


def fresh_answers(artifact: Path, ids: np.ndarray, chunk: int) -> np.ndarray:
    """Run one sequence through an executor of its own, so that no cache holds what another run wrote."""
    executor = CpuExecutor.open(Artifact.open(artifact), threads=2)
    found = answers(executor, ids, chunk)
    executor.close()
    return found


@pytest.mark.parametrize(("family", "weights", "kv"), cases())
def test_lowered_families_answer_as_their_programs_do(
    family: str, weights: str, kv: str, tmp_path: Path
) -> None:
    folder = tiny_folder(family, tmp_path / family, head_dim=32)
    request = Request(folder, precision=precision(weights, kv), context=64, check=False)
    built = build(request, tmp_path / "model.tokc")
    ids = np.random.default_rng(5).integers(0, built.program.config.vocab, TOKENS)
    expected = logits(built.program, ids)[0]
    whole = fresh_answers(built.artifact, ids, TOKENS)
    errors = np.abs(whole - expected).max(axis=1) / np.abs(expected).max()
    # Where two experts are as good, a rounding decides which of them a position takes.
    sound = errors if family not in MIXTURES else np.sort(errors)[: -TOKENS // 20]
    assert sound.max() < PRECISIONS[weights, kv]
    for chunk in (1, 7, 16):
        assert (fresh_answers(built.artifact, ids, chunk) == whole).all(), f"chunks of {chunk} change bits"
