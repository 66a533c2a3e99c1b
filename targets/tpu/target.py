"""The targets that XLA compiles for: `tpu` ahead of time for a topology, `xla` for this machine."""

import importlib.util

from tokc.artifact.writer import canonical_json
from tokc.ir.program import Program
from tokc.runtime.manifest import TargetInfo
from tokc.targets.base import Device, Limits, Lowered, Precision, Target, pass_list
from tokc.targets.tpu.build import Job, Made, require, run
from tokc.targets.tpu.describe import Described, Platform, describe, tpu_platform
from tokc.targets.tpu.fit import fit_of, refuse
from tokc.targets.tpu.index import index_of
from tokc.targets.tpu.step import Bucket
from tokc.targets.tpu.topologies import TOPOLOGIES, topology_here

LIBRARY = "xla.json"
CACHES = ("f16", "int8", "f32")
STABLEHLO = "stablehlo"  # what the code is for: StableHLO runs on no one machine
CPU = Platform("cpu", compute="float32")
TOKENS, SEQS = (1, 16, 64, 512), (1, 16, 64)


def buckets(limits: Limits) -> tuple[Bucket, ...]:
    """Return the sizes of a step that are compiled: one sequence, a token each of many, and any mixture."""
    most_tokens, most_seqs = limits.tokens, min(limits.seqs, limits.rows)
    tokens = sorted({min(count, most_tokens) for count in (*TOKENS, most_tokens)})
    seqs = sorted({min(count, most_seqs) for count in (*SEQS, most_seqs)} - {1})
    alone = [Bucket(count, 1) for count in tokens]
    each = [Bucket(count, count) for count in seqs if count <= most_tokens]
    largest = Bucket(most_tokens, most_seqs)
    return tuple(dict.fromkeys((*alone, *each, largest)))


def pipeline(precision: Precision) -> str:
    """Return the default passes, in running order.

    Projections stay apart: cut over chips, a fused one would have to be put together again.
    """
    return pass_list(precision, ("fuse-linear", "fuse-attention"), "act_group=0")


def lower_cpu(program: Program, device: str, limits: Limits) -> Lowered:
    """Export a ragged program as StableHLO for this machine; the runtime compiles it when it loads."""
    require("jax", "xla")
    described = describe(program, CPU, limits.context, buckets(limits))
    made = run(Job(described.step, pages=None))
    return _lowered(described, made, limits, _info("xla", device), pages=None)


def lower_tpu(program: Program, device: str, limits: Limits) -> Lowered:
    """Export a ragged program for a topology, and compile every bucket for it ahead of time.

    Raises: TargetRefused if it does not fit the memory, naming its size and the smallest with room.
    """
    require("jax", "tpu")
    require("libtpu", "tpu")
    topology = TOPOLOGIES[device]
    platform = tpu_platform(topology.chips)
    described = describe(program, platform, limits.context, buckets(limits))
    fit = fit_of(described.step, topology)
    if fit.pages < described.step.cache.blocks:
        raise refuse(program, topology, fit, described.step)
    job = Job(
        described.step,
        pages=fit.pages,
        compile=tuple(bucket.name for bucket in described.step.buckets),
        topology=topology,
    )
    made = run(job)
    if "out_of_memory" in made.report:
        raise refuse(program, topology, fit, described.step, said=made.report["out_of_memory"]["message"])
    return _lowered(described, made, limits, _info("tpu", device), pages=fit.pages)


def _info(kind: str, device: str) -> TargetInfo:
    return TargetInfo(kind=kind, device=device, arch=STABLEHLO, features=(), library=LIBRARY)


def _lowered(
    described: Described, made: Made, limits: Limits, info: TargetInfo, pages: int | None
) -> Lowered:
    """Put together the files of the artifact."""
    step = described.step
    files = {
        (f"hlo/{name}" if name.endswith(".txt.gz") else f"kernels/{name}"): content
        for name, content in made.files.items()
    }
    files[f"kernels/{LIBRARY}"] = canonical_json(index_of(step, made.report, info, pages))
    largest = max(step.buckets, key=lambda bucket: (bucket.tokens, bucket.seqs))
    bounds = {
        "tokens": largest.tokens,
        "rows": largest.seqs,
        "seqs": largest.seqs,
        "blocks": step.cache.blocks,
        "context": limits.context,
    }
    return Lowered(bounds, described.tensors, files, info)


def cpu_devices() -> tuple[Device, ...]:
    """Return this machine, which runs the step if JAX is here."""
    here = importlib.util.find_spec("jax") is not None
    summary = "StableHLO, compiled when loaded"
    return (Device("cpu", summary, here, dtypes=("int4", "int8", "f32"), caches=CACHES, verified="run"),)


def tpu_devices() -> tuple[Device, ...]:
    """Return every topology that the target compiles for."""
    here = topology_here()
    return tuple(
        Device(
            name,
            f"{topology.chips} x {topology.generation.kind}, {topology.hbm_bytes >> 30} GiB",
            topology == here,
            dtypes=("int4", "int8", "f16"),
            caches=CACHES,
            verified="interpreted",
        )
        for name, topology in TOPOLOGIES.items()
    )


def tpu_here() -> str | None:
    """Return this machine's topology, None if it has none."""
    here = topology_here()
    return None if here is None else here.name


XLA = Target(
    kind="xla",
    summary="the TPU's function on this machine's processor, by XLA; needs JAX at run time",
    devices=cpu_devices,
    host_device=lambda: "cpu",
    pipeline=pipeline,
    lower=lower_cpu,
)
TPU = Target(
    kind="tpu",
    summary="TPU topologies, compiled ahead of time by XLA with no TPU; needs JAX at run time",
    devices=tpu_devices,
    host_device=tpu_here,
    pipeline=pipeline,
    lower=lower_tpu,
)
