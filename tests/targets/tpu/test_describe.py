"""Programs as steps: what is refused, and how weights and cache are laid out."""

from pathlib import Path

import numpy as np
import pytest

from tests.targets.tpu.programs import tiny_program
from tests.tiny_models import tiny_folder
from tokc.errors import TargetRefused
from tokc.importers import import_model
from tokc.targets.base import Limits, Precision
from tokc.targets.constants import array
from tokc.targets.tpu.describe import combined_heads_fit, describe, tpu_platform
from tokc.targets.tpu.step import Bucket, Step
from tokc.targets.tpu.target import CPU, buckets

ONE = (Bucket(1, 1),)
TPU_PLATFORM = tpu_platform(1)
INT4 = Precision("int4", 32, "f16")


def test_a_batch_program_is_refused(tmp_path: Path) -> None:
    program = import_model(tiny_folder("llama", tmp_path / "model"))
    with pytest.raises(TargetRefused, match="ragged"):
        describe(program, CPU, 64, ONE)


def test_rounded_activations_are_refused_with_the_way_out(tmp_path: Path) -> None:
    passes = "fuse-linear,fuse-attention,quantize-weights{act_group=32},kv-layout{page=16 dtype=f32}"
    program = tiny_program(tmp_path, INT4, passes)
    with pytest.raises(TargetRefused, match="act_group=32") as refused:
        describe(program, CPU, 64, ONE)
    assert "act_group=0" in str(refused.value)


def test_an_unknown_op_is_refused_by_name(tmp_path: Path) -> None:
    program = tiny_program(tmp_path, INT4)
    next(node for node in program.graph if node.op_type == "Sigmoid").op_type = "Erf"
    with pytest.raises(TargetRefused, match="'Erf'"):
        describe(program, CPU, 64, ONE)


def test_four_bits_lie_two_a_byte_with_the_columns_of_the_product_last(tmp_path: Path) -> None:
    program = tiny_program(tmp_path, INT4)
    described = describe(program, CPU, 64, ONE)
    name = "model.layers.0.mlp.up_proj.weight.q"
    weight = next(each for each in described.step.weights if each.name == name)
    tensor = next(each for each in described.tensors if each.name == name)
    codes = array(program.graph.initializers[name]).astype(np.int16)  # uint4 around 8, [n, k]
    assert (weight.dtype, weight.shape) == ("int4", codes.shape[::-1])
    stored = tensor.load()
    assert (tensor.dtype, tensor.shape, stored.nbytes) == ("u8", stored.shape, tensor.nbytes)
    low, high = stored & 15, stored >> 4
    unpacked = np.concatenate([low, high], axis=1).astype(np.int16)
    np.testing.assert_array_equal(np.where(unpacked > 7, unpacked - 16, unpacked), codes.T - 8)


def test_a_table_keeps_its_rows(tmp_path: Path) -> None:
    described = describe(tiny_program(tmp_path, INT4), CPU, 64, ONE)
    table = next(each for each in described.step.weights if each.name == "model.embed_tokens.weight.q")
    assert (table.dtype, table.shape) == ("int8", (96, 64))


def test_a_tpu_takes_bfloat16_matrices_float32_norms_and_padded_heads(tmp_path: Path) -> None:
    described = describe(tiny_program(tmp_path, Precision("f32", kv="f16")), TPU_PLATFORM, 64, ONE)
    kinds = {each.name: each.dtype for each in described.step.weights}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == "bfloat16"
    assert kinds["model.norm.weight"] == kinds["rope.cos"] == "float32"
    cache = described.step.cache
    assert (cache.dtype, cache.dim, cache.kv_heads) == ("bfloat16", 128, 2)
    tensor = next(each for each in described.tensors if each.name == "model.layers.0.mlp.up_proj.weight")
    assert (tensor.dtype, tensor.load().nbytes) == ("bf16", tensor.nbytes)


@pytest.mark.parametrize(
    ("heads", "fit"), [(1, True), (2, True), (3, False), (4, True), (6, False), (8, True)]
)
def test_heads_that_fill_whole_tiles(heads: int, *, fit: bool) -> None:
    assert combined_heads_fit(heads, 2) is fit


def test_a_step_survives_json(tmp_path: Path) -> None:
    import json

    step = describe(tiny_program(tmp_path, INT4), CPU, 64, ONE).step
    assert Step.from_json(json.loads(json.dumps(step.to_json()))) == step


def test_buckets_hold_every_step_that_the_limits_allow() -> None:
    found = buckets(Limits(context=128))
    assert found[0] == Bucket(1, 1)
    assert Bucket(512, 64) in found
    assert all(bucket.seqs <= 64 for bucket in found)
    small = buckets(Limits(context=128, tokens=8, rows=4, seqs=4))
    assert Bucket(8, 4) in small
    assert max(bucket.tokens for bucket in small) == 8
