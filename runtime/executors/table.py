"""The executors, by the kind of target that an artifact was built for."""

from collections.abc import Callable

from tokc.errors import ArtifactRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Executor

Open = Callable[[Artifact, int | None, int | None], Executor]


def _cpu(artifact: Artifact, threads: int | None, kv_bytes: int | None) -> Executor:
    from tokc.runtime.executors.cpu import CpuExecutor

    return CpuExecutor.open(artifact, threads=threads, kv_bytes=kv_bytes)


def _xla(artifact: Artifact, threads: int | None, kv_bytes: int | None) -> Executor:
    from tokc.runtime.executors.xla import XlaExecutor

    return XlaExecutor.open(artifact, threads=threads, kv_bytes=kv_bytes)


def _gpu(artifact: Artifact, _threads: int | None, kv_bytes: int | None) -> Executor:
    from tokc.runtime.executors.gpu_ranks import open_gpu

    return open_gpu(artifact, kv_bytes=kv_bytes)


EXECUTORS: dict[str, Open] = {"cpu": _cpu, "cuda": _gpu, "rocm": _gpu, "tpu": _xla, "xla": _xla}


def executor_for(artifact: Artifact, *, threads: int | None = None, kv_bytes: int | None = None) -> Executor:
    """Open the executor of an artifact.

    Raises: ArtifactRefused if this runtime has none for its target.
    """
    kind = artifact.manifest.target.kind
    if kind not in EXECUTORS:
        raise ArtifactRefused(
            f"the artifact is for target '{kind}'; this runtime runs {', '.join(EXECUTORS)}",
            where=str(artifact.path),
        )
    return EXECUTORS[kind](artifact, threads, kv_bytes)
