"""What an artifact was built from: its model, if it is found, and its passes."""

from pathlib import Path
from urllib.parse import quote

from tokc.compiler import Request, prepare
from tokc.errors import TokcError
from tokc.evaluation import is_artifact, source_of
from tokc.model_files import sha256
from tokc.passes.attach_draft import AttachDraft
from tokc.pipeline import Pipeline
from tokc.runtime.artifact import Artifact
from tokc.runtime.manifest import DraftInfo


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
    pipeline = Pipeline.parse(passes or manifest.pipeline)
    folders = (path.absolute().parent, found.parent, Path.cwd())
    return found, pipeline if manifest.draft is None else _with_heads(pipeline, manifest.draft, folders)


def _with_heads(pipeline: Pipeline, draft: DraftInfo, folders: tuple[Path, ...]) -> Pipeline:
    """Return the passes, the draft's heads named by their path where a folder has just that file."""
    files = [folder / draft.file for folder in folders]
    heads = next((file for file in files if file.is_file() and sha256(file) == draft.sha256), None)
    if heads is None:
        return pipeline
    named = AttachDraft(quote(str(heads)))
    return Pipeline(tuple(named if isinstance(one, AttachDraft) else one for one in pipeline.passes))
