"""Tiny mixture-of-experts models: built whole, held against the program, the same bits in every batch."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_invariance import Way, logits_of
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.errors import TargetRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.targets.cpu.isa import runnable_isas

CASES = (("mixtral", "f32"), ("qwen2_moe", "int4"))
SIZES = {"num_hidden_layers": 1, "hidden_size": 128}  # heads of 32
MOST_KL = {"f32": 1e-8, "int4": 0.5}
WAYS = (
    (2, Way(chunks=(1, 40, 7), others=(5, 30, 2), seed=3)),
    (1, Way(chunks=(1,) * 60)),
    (2, Way(others=(1,) * 12, seed=8)),
)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_a_model_of_experts_answers_as_its_program_in_any_batch(
    tmp_path: Path, family: str, dtype: str
) -> None:
    pytest.importorskip("torch")
    model = tiny_folder(family, tmp_path / family, **SIZES)
    target = f"cpu:{runnable_isas()[0].name}"  # the fewest variants of a tile to compile
    request = Request(model, target, precision(dtype, None))
    made = build(request, tmp_path / "experts.tokc")  # which compares the kernels with the program
    kind = "MoeLinear" if dtype == "f32" else "QuantMoeLinear"
    assert kind in {node.op_type for node in made.program.graph}
    final = json.loads((made.artifact / "quality.json").read_text())["final"]
    assert final["kl_mean"] < MOST_KL[dtype]
    tokens = np.random.default_rng(1).integers(0, 96, 70, dtype=np.int32)
    found = []
    for threads, way in ((1, Way()), *WAYS):
        executor = CpuExecutor.open(Artifact.open(made.artifact), threads=threads, kv_bytes=8 << 20)
        found.append(logits_of(executor, tokens, way))
        executor.close()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_targets_without_kernels_for_experts_say_so(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = tiny_folder("mixtral", tmp_path / "mixtral", **SIZES)
    request = Request(model, target="tpu:v5e-1", precision=precision("f16", "f16"), check=False)
    with pytest.raises(TargetRefused, match="MoeRouter"):
        build(request, tmp_path / "experts.tokc")
