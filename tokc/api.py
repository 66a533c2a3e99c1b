"""The Python API: the same as the command line, for programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokc.runtime.engine import Engine
    from tokc.runtime.speculation.config import SpeculativeConfig


def compile(  # noqa: A001 - the field's word for it, and re.compile's precedent
    model: str | Path,
    *,
    target: str = "cpu",
    passes: str | None = None,
    dtype: str = "int4",
    kv_dtype: str | None = None,
    context: int | None = None,
    out: str | Path | None = None,
    check: bool = True,
    lora: Sequence[str | Path] = (),
) -> Path:
    """Build `model` for `target` and return the artifact's folder.

    `model` is a Hugging Face folder or a GGUF file; `passes` a pipeline as text, None for the target's
    default at `dtype` (int2, int3, int4, int8, f16, f32); `kv_dtype` f32, f16, int8 or int4; `context` in
    tokens; `out` defaults to NAME.tokc here; `lora` are folders of adapters, merged in order.
    Raises: TokcError.
    """
    from tokc.compiler import Request, build, precision
    from tokc.model_files import default_out

    request = Request(
        Path(model),
        target=target,
        precision=precision(dtype, kv_dtype),
        passes=passes,
        context=context,
        check=check,
        lora=tuple(Path(one) for one in lora),
    )
    return build(request, Path(out) if out is not None else default_out(request.model)).artifact


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    kv_bytes: int | None = None,
    speculative_config: "Mapping[str, object] | SpeculativeConfig | None" = None,
    require_signature: str | Path | None = None,
) -> "Engine":
    """Load an artifact; `threads` None takes every usable core, `kv_bytes` None a size that fits the machine.

    `speculative_config` says how tokens are drafted, in vLLM's names, as in `{"method": "ngram"}`: several
    are made a step, and the answers are the same. Nothing is run
    unless the owner of the public key `require_signature` (a PEM file) signed the artifact.
    Raises: ArtifactRefused; UnknownOption for a wrong configuration.
    """
    from tokc.runtime.artifact import Artifact
    from tokc.runtime.quick_import import quick_imports

    speculative = _speculative(speculative_config)
    artifact = Artifact.open(path, verify=False)
    if require_signature is not None:
        from tokc.runtime.signature import require_signature as check

        check(artifact, Path(require_signature))
        if speculative is not None and speculative.model is not None:
            check(Artifact.open(speculative.model, verify=False), Path(require_signature))
    artifact.begin()  # reads and checks while the rest is imported
    with quick_imports():
        from tokc.runtime.engine import Engine

    return Engine.open(artifact, threads=threads, kv_bytes=kv_bytes, speculative=speculative)


def _speculative(config: "Mapping[str, object] | SpeculativeConfig | None") -> "SpeculativeConfig | None":
    from tokc.runtime.speculation.config import SpeculativeConfig

    return config if config is None or isinstance(config, SpeculativeConfig) else SpeculativeConfig.of(config)
