"""The artifact's index of its steps: kernels/xla.json, all that the runtime asks of them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tokc.runtime.manifest import TargetInfo
from tokc.targets.tpu.step import Step

SCHEMA_VERSION = 1


def index_of(step: Step, report: Mapping[str, Any], info: TargetInfo, pages: int | None) -> dict[str, Any]:
    """Return the index; `pages` None says that the runtime chooses the size of the cache."""
    return {
        "schema_version": SCHEMA_VERSION,
        "platform": step.platform,
        "chips": step.chips,
        "compute": step.compute,
        "pages": pages,
        "cache": asdict(step.cache),
        "weights": {
            each.name: {"dtype": each.dtype, "shape": list(each.shape), "axes": list(each.axes)}
            for each in step.weights
        },
        "buckets": [
            {**asdict(bucket), "file": f"{bucket.name}.stablehlo", **report["buckets"][bucket.name]}
            for bucket in step.buckets
        ],
        "jax": report["jax"],
        "verification": verification(step, info),
    }


def verification(step: Step, info: TargetInfo) -> dict[str, str]:
    """Return how far each part was checked where the artifact was built, and how."""
    if info.kind == "xla":
        return {
            "function": "run: the build compares its answers with the program's in onnxruntime, see `lower` "
            "in quality.json; not with --no-check",
        }
    rows = "plain XLA, compiled for the topology; run on a processor in tokc's tests and as `xla:cpu`"
    kernel = "a Pallas kernel, compiled for the topology; run by Pallas' interpreter in tokc's tests"
    choice = {"xla": rows, "pallas": kernel}
    return {
        "function": "compiled for the topology; a small model's is run on a processor in tokc's tests, its "
        "kernels interpreted",
        "attention": choice[step.attention],
        "products with int8 and int4": choice[step.products],
        "memory": "XLA's memory analysis of every bucket",
        "speed": "not measured: no TPU ran it",
    }
