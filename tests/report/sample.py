"""An artifact folder with the files that a report reads, and a bench of it; figures like those of SmolLM2."""

import json
from pathlib import Path

from tokc.cost import records
from tokc.cost.devices import Host
from tokc.cost.measure import Bench, Point
from tokc.cost.profile import KernelTime, Profile, Roofs, StepProfile, Work
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
ROOFS = Roofs.of(HOST)


def kernel_time(op: str, kernel: str, seconds: float, work: Work, share: float) -> KernelTime:
    """Return a kernel that ran once and was not waited for long."""
    least_s, roof = ROOFS.bound(work)
    return KernelTime(op, kernel, 1, seconds, seconds / 50, share, work, least_s, roof)


KERNELS = (
    kernel_time("QuantLinear", "quant_linear_960x576_q4", 1.2e-3, Work("int8", 2e8, 5.6e7, 5.5e7), 0.6),
    kernel_time("QuantLinear", "quant_linear_576x576_q4", 4e-4, Work("int8", 6.4e7, 1.8e7, 1.8e7), 0.2),
    kernel_time("PagedAttention", "attention_f16", 3e-4, Work("f32", 1.1e7, 3.8e6, 3.7e6), 0.15),
    kernel_time("AddRmsNorm", "norm", 9e-5, Work("f32", 1.7e5, 6e5, 2e3), 0.045),
    kernel_time("Gather", "gather", 1e-6, Work("f32", 0.0, 4e3, 0.0), 0.005),
)
PROFILE = Profile(
    threads=2,
    roofs=ROOFS,
    steps=(
        StepProfile(
            step="decode",
            sequences=1,
            tokens=1,
            context=160,
            kernels=KERNELS,
            kernels_s=1.99e-3,
            barriers_s=4e-5,
            edges_s=5e-5,
            step_s=Spread(2.0e-3, 1.9e-3, 2.4e-3, 200),
            profiled_s=Spread(2.08e-3, 2.0e-3, 2.5e-3, 200),
            engine_s=Spread(2.2e-3, 2.1e-3, 2.3e-3, 5),
        ),
        StepProfile(
            step="prefill",
            sequences=1,
            tokens=512,
            context=512,
            kernels=KERNELS,
            kernels_s=0.12,
            barriers_s=2e-3,
            edges_s=4e-3,
            step_s=Spread(0.125, 0.12, 0.13, 7),
            profiled_s=Spread(0.126, 0.12, 0.13, 7),
        ),
    ),
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


_LOSSY = {
    "max_abs_logit_diff": 0.21,
    "mean_abs_logit_diff": 0.03,
    "perplexity_before": 21.0,
    "perplexity_after": 21.2,
}


def _entry(row: tuple[str, bool, bool, int, int, float]) -> dict[str, object]:
    name, changed, exact, nodes, weights, moved = row
    index = _LEDGER.index(row)
    before = _LEDGER[max(index - 1, 0)]
    lossy = {} if exact else {"kl_mean": 2.4e-4, "top1_agree": 0.989, **_LOSSY}
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
