"""expose-features, before and after, in both forms and in machine code."""

from pathlib import Path

import numpy as np
import pytest

from tests.passes.graphs import decoder
from tests.targets.cpu.chunks import answers
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision, prepare
from tokc.errors import PassFailed, TargetRefused
from tokc.ir.execute import execute
from tokc.ir.head import head_of, output_named
from tokc.ir.verify import verify
from tokc.passes.expose_features import ExposeFeatures
from tokc.passes.kv_layout import KvLayout
from tokc.pipeline import Pipeline
from tokc.quality.running import feeds_of, fixed_ids
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.targets.base import Precision, pass_list

TOKENS, CONTEXT = 24, 64


def test_what_the_head_reads_becomes_an_output_and_nothing_else_changes() -> None:
    before = decoder("llama")
    after = ExposeFeatures().run(before)
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
    assert [str(value.name) for value in after.graph.outputs if value.name == "features"] == ["features"]
    assert len(after.graph.outputs) == len(before.graph.outputs) + 1
    assert output_named(after.graph, "features") is head_of(after.graph).inputs[0]
    verify(after)


def test_features_that_are_exposed_already_are_left_alone() -> None:
    program = ExposeFeatures().run(decoder("llama"))
    assert ExposeFeatures().run(program) is program


def test_a_ragged_program_is_refused_by_name() -> None:
    ragged = Pipeline.parse(pass_list(Precision("f32", kv="f32"))).run(decoder("llama"))
    with pytest.raises(PassFailed, match="batch form"):
        ExposeFeatures().run(ragged)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_forms_have_the_same_features(family: str) -> None:
    batch = ExposeFeatures().run(decoder(family))
    fused = Pipeline.parse("fuse-linear,fuse-attention,fuse-add-rms-norm").run(batch)
    ragged = KvLayout(page=4, dtype="f32").run(fused)
    verify(ragged)
    ids = fixed_ids(batch, 2, 9)
    dense, paged = (execute(program, feeds_of(program, ids)) for program in (batch, ragged))
    assert paged["features"].shape == (18, batch.config.hidden)
    np.testing.assert_allclose(paged["features"].reshape(2, 9, -1), dense["features"], atol=1e-5)


@pytest.mark.parametrize(("dtype", "kv"), [("f32", "f32"), ("int4", "f16")])
def test_an_artifact_gives_features_out_and_the_same_logits_to_the_bit(
    dtype: str, kv: str, tmp_path: Path
) -> None:
    folder = tiny_folder("llama", tmp_path / "llama", head_dim=32)
    usual = pass_list(precision(dtype, kv))
    found = []
    for passes in (usual, f"expose-features,{usual}"):
        made = build(Request(folder, passes=passes, context=CONTEXT, check=False), tmp_path / "a.tokc")
        executor = CpuExecutor.open(Artifact.open(made.artifact), threads=2)
        found.append(answers(executor, np.arange(1, TOKENS + 1), TOKENS))
        features = executor.features
        if passes == usual:
            assert features is None
        else:
            assert features is not None
            ids = np.arange(1, TOKENS + 1)[None]
            expected = execute(made.program, feeds_of(made.program, ids))["features"]
            bound = 1e-4 if dtype == "f32" else 0.02
            assert np.abs(features - expected).max() <= bound * np.abs(expected).max()
        executor.close()
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("target", ["cuda:sm_90", "tpu:v5e-1"])
def test_a_target_without_drafts_is_refused_by_name(target: str, tmp_path: Path) -> None:
    passes = f"expose-features,{pass_list(Precision())}"
    with pytest.raises(TargetRefused, match=f"'{target}' has no drafts yet"):
        prepare(Request(tmp_path, target=target, passes=passes))
