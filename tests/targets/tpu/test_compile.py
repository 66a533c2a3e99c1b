"""A tiny model compiled ahead of time for a TPU that is not here."""

import gzip
import importlib.util
from pathlib import Path

import pytest

from tests.targets.tpu.programs import tiny_program
from tokc.ir.program import KvDtype
from tokc.targets.base import Precision
from tokc.targets.tpu.build import Job, run
from tokc.targets.tpu.describe import describe, tpu_platform
from tokc.targets.tpu.step import Bucket
from tokc.targets.tpu.topologies import TOPOLOGIES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is missing: pip install 'tokc-compiler[tpu]'"
)


def test_a_step_compiles_for_v5e_with_the_cache_in_place_and_the_kernel_in_it(tmp_path: Path) -> None:
    program = tiny_program(tmp_path, Precision("int4", 32, "f16"))
    platform = tpu_platform(1)
    step = describe(program, platform, 64, (Bucket(16, 16),)).step
    made = run(Job(step, pages=7, compile=("step_16x16",), topology=TOPOLOGIES["v5e-1"]))
    found = made.report["buckets"]["step_16x16"]
    products = 2 * 7 + 1  # four projections, three of the MLP, and the head
    assert found["custom_calls"]["tpu_custom_call"] == products + 2, "one attention a layer"
    assert found["collectives"] == {}
    assert found["aliased_bytes"] == 8 * step.cache.page_bytes, "the cache is written in place"
    assert made.files["step_16x16.stablehlo"]
    assert "ENTRY" in gzip.decompress(made.files["step_16x16.txt.gz"]).decode()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["v5e-4", "v5p-8", "v6e-1", "v6e-8"])
def test_a_step_compiles_for_every_generation_and_cut_over_chips(device: str, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    sizes = {**heads, "hidden_size": 256, "intermediate_size": 256}  # eight groups, one a chip at least
    program = tiny_program(tmp_path, Precision("int8", 32, "f16"), **sizes)
    topology = TOPOLOGIES[device]
    platform = tpu_platform(topology.chips)
    step = describe(program, platform, 64, (Bucket(16, 16),)).step
    report = run(Job(step, pages=7, compile=("step_16x16",), topology=topology)).report
    found = report["buckets"]["step_16x16"]
    assert found["custom_calls"]["tpu_custom_call"] == 2 * 8 + 1
    sums = sum(count for name, count in found["collectives"].items() if name == "all-reduce f32[16,256]")
    assert sums == (4 if topology.chips > 1 else 0), "two a layer"


@pytest.mark.slow
@pytest.mark.parametrize(("kv", "kernels"), [("int8", 0), ("f32", 0), ("f16", 2)])
def test_caches_that_the_attention_kernel_does_not_take_compile_in_plain_xla(
    kv: KvDtype, kernels: int, tmp_path: Path
) -> None:
    program = tiny_program(tmp_path, Precision("f16", 32, kv))
    step = describe(program, tpu_platform(1), 64, (Bucket(16, 16),)).step
    report = run(Job(step, pages=7, compile=("step_16x16",), topology=TOPOLOGIES["v5e-1"])).report
    found = report["buckets"]["step_16x16"]
    assert found["custom_calls"].get("tpu_custom_call", 0) == kernels
    assert found["aliased_bytes"] >= 8 * step.cache.page_bytes


@pytest.mark.slow
def test_a_cache_beyond_the_memory_is_reported_as_xla_finds_it(tmp_path: Path) -> None:
    program = tiny_program(tmp_path, Precision("int8", 32, "f16"))
    step = describe(program, tpu_platform(1), 64, (Bucket(1, 1),)).step
    pages = (17 << 30) // step.cache.page_bytes
    report = run(Job(step, pages=pages, compile=("step_1x1",), topology=TOPOLOGIES["v5e-1"])).report
    assert report["out_of_memory"]["bucket"] == "step_1x1"
    assert "hbm" in report["out_of_memory"]["message"].lower()
