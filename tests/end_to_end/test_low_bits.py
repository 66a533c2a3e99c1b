"""Tiny models of few bits, weights and cache: built, held against the program, the same in any batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.test_invariance import Way, logits_of
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, kv_bytes_per_token, precision
from tokc.errors import TargetRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.targets.plan import ITEM_BYTES

BITS = {"int4": 4, "int3": 3, "int2": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny_folder("qwen3", tmp_path_factory.mktemp("models") / "qwen3", hidden_size=96)


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("int3", "f16"), ("int2", "int4")])
def test_an_artifact_of_few_bits_answers_as_its_program_in_any_batch(
    model: Path, tmp_path: Path, dtype: str, kv_dtype: str
) -> None:
    request = Request(model, precision=precision(dtype, kv_dtype))
    made = build(request, tmp_path / "few.tokc")  # which compares the kernels with the program
    bits = BITS[dtype]
    linears = [node for node in made.program.graph if node.op_type == "QuantLinear"]
    assert [node.attributes.get_int("bits", 0) for node in linears][:-1] == [bits] * (len(linears) - 1)
    plan = json.loads((made.artifact / "plan.json").read_text())
    caches = [buffer for buffer in plan["buffers"] if buffer["space"] == "kv"]
    page_bytes = sum(ITEM_BYTES[one["dtype"]] * math.prod(one["shape"][1:]) for one in caches)
    manifest = Artifact.open(made.artifact).manifest
    assert (
        page_bytes == manifest.kv.bytes_per_token * manifest.kv.page == 16 * kv_bytes_per_token(made.program)
    )
    tokens = np.random.default_rng(1).integers(0, 96, 60, dtype=np.int32)
    found = []
    for threads, way in ((1, Way()), (2, Way(chunks=(1, 33, 7), others=(5, 40, 2), seed=3))):
        executor = CpuExecutor.open(Artifact.open(made.artifact), threads=threads, kv_bytes=8 << 20)
        found.append(logits_of(executor, tokens, way))
        executor.close()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("group", [16, 48])
def test_groups_that_no_kernel_has_are_refused(model: Path, tmp_path: Path, group: int) -> None:
    passes = f"fuse-linear,fuse-attention,quantize-weights{{bits=3 group={group}}},kv-layout"
    with pytest.raises(TargetRefused, match=f"a scale every {group} columns") as refused:
        build(Request(model, passes=passes, check=False), tmp_path / "none.tokc")
    assert refused.value.hint == "it takes groups of multiples of 32"
    assert not (tmp_path / "none.tokc").exists()
