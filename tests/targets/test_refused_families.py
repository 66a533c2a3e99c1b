"""Targets refuse by name what a family needs and they lack; nothing of a program is ignored."""

from pathlib import Path

import pytest

from tests.tiny_models import tiny_folder
from tokc.errors import TargetRefused
from tokc.importers import import_model
from tokc.ir.program import Program
from tokc.pipeline import Pipeline
from tokc.targets.base import Limits
from tokc.targets.gpu.emit import emit
from tokc.targets.tpu.describe import describe, tpu_platform

PASSES = "fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,fuse-add-rms-norm,kv-layout,eliminate-dead-code"
LACKING = {
    "gemma2": "'PagedAttention' with softcap 1.5",
    "gpt2": "'LayerNormalization'",
}


def ragged(family: str, path: Path) -> Program:
    return Pipeline.parse(PASSES).run(import_model(tiny_folder(family, path)))


@pytest.mark.parametrize("family", LACKING)
def test_gpu_targets_refuse_what_they_lack(family: str, tmp_path: Path) -> None:
    program = ragged(family, tmp_path)
    with pytest.raises(TargetRefused, match=LACKING[family]):
        emit(program, "sm_90", Limits(context=64, tokens=16, seqs=2, rows=2))


@pytest.mark.parametrize("family", LACKING)
def test_xla_targets_refuse_what_they_lack(family: str, tmp_path: Path) -> None:
    program = ragged(family, tmp_path)
    with pytest.raises(TargetRefused, match=LACKING[family]):
        describe(program, tpu_platform(1), 64, ())


def test_targets_without_trees_refuse_them(tmp_path: Path) -> None:
    program = Pipeline.parse(f"{PASSES},admit-trees").run(import_model(tiny_folder("llama", tmp_path)))
    with pytest.raises(
        TargetRefused, match="GPU targets have no kernel for 'RopeWriteKV' with entries"
    ) as gpu:
        emit(program, "sm_90", Limits(context=64, tokens=16, seqs=2, rows=2))
    assert gpu.value.hint == "leave out admit-trees, or build for cpu"
    with pytest.raises(TargetRefused, match="XLA targets have no row for 'RopeWriteKV' with entries"):
        describe(program, tpu_platform(1), 64, ())
