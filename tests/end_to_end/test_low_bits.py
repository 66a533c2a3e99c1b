"""Tiny models at every width of weights: built whole, held against the program, same bits in every batch."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_invariance import Way, logits_of
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor

BITS = {"int4": 4, "int3": 3, "int2": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny_folder("qwen3", tmp_path_factory.mktemp("models") / "qwen3", hidden_size=96)


@pytest.mark.parametrize("dtype", ["int3", "int2"])
def test_an_artifact_of_few_bits_answers_as_its_program_in_any_batch(
    model: Path, tmp_path: Path, dtype: str
) -> None:
    request = Request(model, precision=precision(dtype, None))
    made = build(request, tmp_path / "few.tokc")  # which compares the kernels with the program
    bits = BITS[dtype]
    linears = [node for node in made.program.graph if node.op_type == "QuantLinear"]
    assert [node.attributes.get_int("bits", 0) for node in linears][:-1] == [bits] * (len(linears) - 1)
    tokens = np.random.default_rng(1).integers(0, 96, 60, dtype=np.int32)
    found = []
    for threads, way in ((1, Way()), (2, Way(chunks=(1, 33, 7), others=(5, 40, 2), seed=3))):
        executor = CpuExecutor.open(Artifact.open(made.artifact), threads=threads, kv_bytes=8 << 20)
        found.append(logits_of(executor, tokens, way))
        executor.close()
    np.testing.assert_array_equal(found[0], found[1])
