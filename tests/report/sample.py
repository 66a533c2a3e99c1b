"""An artifact folder with the files that a report reads, and a bench of it; figures like those of SmolLM2."""

import json
from pathlib import Path

from tokc.cost import records
from tokc.cost.devices import Host
from tokc.cost.measure import Bench, Point
from tokc.cost.spread import Spread
from tokc.report.collect import bench_path, manifest_sha256
from tokc.runtime.manifest import FileInfo, KvInfo, LimitsInfo, Manifest, ModelInfo, TargetInfo

HOST = Host(
    cpu="AMD EPYC 9R14",
    arch="x86_64",
    cores=2,
    memory_bytes=16 << 30,
    instructions=("avx512_vnni", "avx2", "avx512f", "fma"),
    read_bytes_per_s=47.9e9,
    f32_flops_per_s=181e9,
    int8_flops_per_s=724e9,
    how="read by the artifact's own threads; f32 matmul of 1024 by numpy; int8 taken as 4 times that",
)
PIPELINE = (
    "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,"
    "quantize-weights{bits=4 group=32},fuse-add-rms-norm,kv-layout{page=16 dtype=f16}"
)
# op, count, flops and bytes of one decoded token at 1024 tokens of context
DECODE = [
    ("QuantLinear", 121, 2.69e8, 8.62e7),
    ("PagedAttention", 30, 3.54e7, 2.36e7),
    ("RopeWriteKV", 30, 1.3e5, 2.9e5),
    ("AddRmsNorm", 60, 1.7e5, 5.5e5),
    ("GatedActivation", 30, 2.8e5, 5.5e5),
    ("QuantEmbedding", 1, 1.2e3, 3.0e3),
]


def write_artifact(folder: Path) -> Path:
    """Write NAME.tokc without weights or code; only its metadata is whole."""
    path = folder / "SmolLM2-135M-Instruct.tokc"
    path.mkdir(parents=True)
    manifest = Manifest(
        tokc_version="0.1.0",
        name="SmolLM2-135M-Instruct",
        target=TargetInfo("cpu", "avx512-vnni", "x86_64", ("avx512_vnni",), "step.so"),
        model=ModelInfo("llama", 576, 30, 9, 3, 64, 1536, 49152, 1, (2,)),
        kv=KvInfo(16, "f16", 30, 3, 64),
        limits=LimitsInfo(2048, 512, 64),
        files={
            "model.safetensors": FileInfo("0" * 64, 87_400_000),
            "program.onnx": FileInfo("1" * 64, 91_000),
        },
        pipeline=PIPELINE,
        licence="apache-2.0",
    )
    (path / "manifest.json").write_text(json.dumps(manifest.to_json()))
    ops = [{"op": op, "count": count, "flops": flops, "bytes": size} for op, count, flops, size in DECODE]
    prefill = [{**op, "flops": 512 * float(op["flops"])} for op in ops]
    work = {
        "schema_version": 1,
        "decode": {"tokens": 1, "context": 1024, "ops": ops},
        "prefill": {"tokens": 512, "context": 512, "ops": prefill},
    }
    (path / "cost.json").write_text(json.dumps(work))
    (path / "quality.json").write_text(
        json.dumps({"schema_version": 1, "ledger": list(map(_entry, _LEDGER))})
    )
    return path


def write_bench(artifact: Path) -> Path:
    """Write a bench of the artifact to where `tokc bench` writes it."""
    points = (
        _point(1, ttft=0.094, tpot=0.00342, rate=205.0, prefill=1362.0),
        _point(8, ttft=0.51, tpot=0.0089, rate=389.0, prefill=1420.0),
    )
    bench = Bench(
        artifact=artifact.name,
        manifest_sha256=manifest_sha256(artifact),
        measured_at="2026-11-24T04:20:00+00:00",
        host=HOST,
        load_s=0.14,
        peak_rss_bytes=312_000_000,
        points=points,
    )
    path = bench_path(artifact)
    records.write(path, bench)
    return path


def _point(batch: int, *, ttft: float, tpot: float, rate: float, prefill: float) -> Point:
    return Point(batch, 128, 64, _spread(ttft), _spread(tpot), _spread(rate), _spread(prefill))


def _spread(median: float) -> Spread:
    return Spread(median, median * 0.96, median * 1.05, 3)


# pass, changed, exact, nodes, weight bytes, bytes of a token: each after it
_LEDGER = [
    ("fold-constants", True, True, 1177, 98_300_000, 1.46e8),
    ("eliminate-dead-code", False, True, 1177, 98_300_000, 1.46e8),
    ("fuse-linear", True, True, 967, 98_300_000, 1.46e8),
    ("fuse-attention", True, True, 577, 98_300_000, 1.31e8),
    ("fuse-qkv", True, True, 547, 98_300_000, 1.30e8),
    ("fuse-gate-up", True, True, 487, 98_300_000, 1.28e8),
    ("quantize-weights{bits=4 group=32 head_bits=8 method=rtn}", True, False, 366, 87_400_000, 1.17e8),
    ("fuse-add-rms-norm", True, True, 306, 87_400_000, 1.16e8),
    ("kv-layout{page=16 dtype=f16}", True, False, 246, 87_400_000, 1.11e8),
]


def _entry(row: tuple[str, bool, bool, int, int, float]) -> dict[str, object]:
    name, changed, exact, nodes, weights, moved = row
    index = _LEDGER.index(row)
    before = _LEDGER[max(index - 1, 0)]
    lossy = {} if exact else {"kl_mean": 2.4e-4, "top1_agree": 0.989, "max_abs_logit_diff": 0.21}
    return {
        "pass_spec": name,
        "changed": changed,
        "exact": exact,
        "nodes_before": before[3],
        "nodes_after": nodes,
        "weight_bytes_before": before[4],
        "weight_bytes_after": weights,
        "bytes_before": before[5],
        "bytes_after": moved,
        **lossy,
    }
