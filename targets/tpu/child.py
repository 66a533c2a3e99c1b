"""Exports a step and compiles it, in a process of its own: `python -m tokc.targets.tpu.child JOB FOLDER`.

JAX and libtpu are imported here alone: libtpu takes seconds to start, wants variables in its environment and
cannot be let go of again. JOB is a JSON file; what was made lies in FOLDER, `report.json` beside it.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax import export

from tokc.targets.tpu.function import arguments, function_of, mesh_of, results
from tokc.targets.tpu.hlo import collectives, custom_calls
from tokc.targets.tpu.step import Bucket, Step

CACHES = 1  # the argument that is donated: each step writes the cache in place
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "CompileTimeHbmOom", "Ran out of memory")


def exported(step: Step, bucket: Bucket, pages: int | None, topology: Any = None) -> Any:
    """Return the step as jax.export has it; `pages` None leaves the size of the cache open."""
    mesh = mesh_of(step.chips, topology=topology)
    place = mesh if step.chips > 1 else None
    (symbol,) = export.symbolic_shape("pages") if pages is None else (pages,)
    call = jax.jit(function_of(step, mesh), donate_argnums=(CACHES,), out_shardings=results(step, place))
    shapes = arguments(step, bucket, symbol, place)
    if topology is None:
        return export.export(call, platforms=[step.platform])(*shapes)
    with jax.sharding.use_abstract_mesh(mesh):
        return export.export(call, platforms=[step.platform])(*shapes)


def compiled(step: Step, bucket: Bucket, found: Any, pages: int, devices: Any) -> Any:
    """Compile an exported step for devices, as the runtime does when it loads it."""
    mesh = mesh_of(step.chips, devices)
    call = jax.jit(found.call, donate_argnums=(CACHES,), out_shardings=results(step, mesh))
    lowered = call.trace(*arguments(step, bucket, pages, mesh)).lower(lowering_platforms=(step.platform,))
    return lowered.compile()


def said_of(executable: Any) -> dict[str, Any]:
    """Return what XLA says of an executable: bytes on one chip, collectives, kernels of its own."""
    memory = executable.memory_analysis()
    text = executable.as_text()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "collectives": collectives(text),
        "custom_calls": custom_calls(text),
    }


def devices_of(job: dict[str, Any]) -> Any:
    """Return the devices to compile for: a topology's, which need not be here, or this machine's."""
    if job["topology"] is None:
        return jax.devices(job["step"]["platform"])
    from jax.experimental import topologies

    facts = job["topology"]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=facts["name"], chips_per_host_bounds=tuple(facts["host_bounds"])
    ).devices


def work(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Export every bucket, and compile those that the job names."""
    step = Step.from_json(job["step"])
    devices = devices_of(job) if job["compile"] else None
    report: dict[str, Any] = {"buckets": {}, "jax": jax.__version__}
    for bucket in step.buckets:
        found = exported(step, bucket, job["pages"], job["topology"])
        (folder / f"{bucket.name}.stablehlo").write_bytes(found.serialize())
        entry: dict[str, Any] = {}
        if bucket.name in job["compile"]:
            try:
                executable = compiled(step, bucket, found, job["pages"] or job["check_pages"], devices)
            except Exception as error:
                if not any(mark in f"{type(error).__name__} {error}" for mark in OUT_OF_MEMORY):
                    raise
                return {**report, "out_of_memory": {"bucket": bucket.name, "message": str(error)[:2000]}}
            entry = said_of(executable)
            (folder / f"{bucket.name}.txt.gz").write_bytes(
                gzip.compress(executable.as_text().encode(), mtime=0)
            )
        report["buckets"][bucket.name] = entry
    return report


def main() -> None:
    """Do the job named on the command line."""
    job, folder = Path(sys.argv[1]), Path(sys.argv[2])
    report = work(json.loads(job.read_text()), folder)
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
