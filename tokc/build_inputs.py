"""What an artifact was built from: its model, if it is found, and its passes."""

from pathlib import Path

from tokc.compiler import Request, prepare
from tokc.errors import TokcError
from tokc.evaluation import is_artifact, source_of
from tokc.pipeline import Pipeline
from tokc.runtime.artifact import Artifact


def model_and_pipeline(path: Path, reference: Path | None, passes: str | None) -> tuple[Path, Pipeline]:
    """Return the model and the passes of an artifact, or of a model as `tokc build` takes it by default.

    Raises: TokcError if an artifact's model is not found, or the passes do not parse.
    """
    if not is_artifact(path):
        return path, prepare(Request(path, passes=passes))[1]
    manifest = Artifact.open(path, verify=False).manifest
    found = reference or source_of(manifest.provenance, (path.absolute().parent, Path.cwd()))
    if found is None:
        named = ", ".join(f"'{name}'" for name in sorted(manifest.provenance))
        raise TokcError(
            f"the model that the artifact was built from, {named}, lies neither beside it nor in this folder",
            where=str(path),
            hint="name it: --reference MODEL",
        )
    return found, Pipeline.parse(passes or manifest.pipeline)
