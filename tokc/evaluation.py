"""Evaluates an artifact or a model: perplexity, and how far its answers are from those of a reference."""

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from tokc.cost.evaluation import Divergence, Estimate, Evaluation, Tokens
from tokc.errors import TokcError
from tokc.model_files import sha256
from tokc.quality.compiled import ArtifactRun
from tokc.quality.divergence import F64, Rows
from tokc.quality.perplexity import I64, WINDOW, Answers, Scores, score
from tokc.quality.text import evaluation_text, windows
from tokc.report.identity import manifest_sha256
from tokc.runtime.artifact import MANIFEST, Artifact

Progress = Callable[[str], object]

DEFAULT_TOKENS = 8192
BUNDLED = "tokc's evaluation text"


@dataclass(frozen=True)
class Request:
    """What to evaluate; `reference` None looks for the model that the artifact was built from.

    `text` None is the evaluation text of tokc; `tokens` are read in windows spread over the text, none if 0.
    """

    model: Path
    reference: Path | None = None
    text: Path | None = None
    tokens: int = DEFAULT_TOKENS
    threads: int | None = None


@dataclass(frozen=True)
class Opened:
    """A model ready to answer, and what reading a text for it takes."""

    run: Answers
    tokenizer_json: str | None
    bos_token_id: int | None
    context: int
    provenance: Mapping[str, str]
    where: str


def evaluate(request: Request, progress: Progress = lambda _: None) -> Evaluation:
    """Score a model on a text, beside its reference if one is given or found.

    Raises: TokcError if a file is missing, damaged or no model, the text too short, or the two models do not
        read the same tokens.
    """
    if request.tokens == 0:
        return Evaluation(request.model.name, _build_of(request.model))
    found, note = _reference_of(request)
    with ExitStack() as stack:
        subject = opened(request.model, stack, request.threads, progress)
        text, name = _text(request.text)
        ids = cut(text, subject, request.tokens)
        reference = None
        if found is not None:
            reference = opened(found, stack, request.threads, progress)
            _require_same_tokens(subject, reference, text, ids)
            note = note or _difference(subject, reference)
        run = None if reference is None else reference.run
        scores = score(ids, subject.run, run, progress)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Evaluation(
        subject=request.model.name,
        manifest_sha256=_build_of(request.model),
        tokens=Tokens(name, digest, len(ids), ids.shape[1], scores.scored),
        perplexity=perplexity_of(scores.nll),
        divergence=None if found is None else divergence_of(scores, found.name),
        notes=() if note is None else (note,),
    )


def is_artifact(path: Path) -> bool:
    """Return whether a path is an artifact's folder rather than a model."""
    return (path / MANIFEST).is_file()


def _build_of(path: Path) -> str | None:
    return manifest_sha256(path) if is_artifact(path) else None


def opened(path: Path, stack: ExitStack, threads: int | None, progress: Progress) -> Opened:
    """Open an artifact on its compiled kernels, or a model as it was imported in onnxruntime.

    Raises: TokcError if it is neither, damaged, or cannot run here.
    """
    if is_artifact(path):
        progress(f"load {path}")
        artifact = Artifact.open(path)
        manifest = artifact.manifest
        return Opened(
            stack.enter_context(ArtifactRun(artifact, threads=threads)),
            artifact.read_text("tokenizer.json"),
            manifest.model.bos_token_id,
            manifest.limits.context,
            manifest.provenance,
            str(path),
        )
    from tokc.importers import import_model
    from tokc.quality.running import ProgramRun

    progress(f"import {path}")
    program = import_model(path)
    return Opened(
        stack.enter_context(ProgramRun(program, threads=threads or 2)),
        program.assets.tokenizer_json,
        program.config.bos_token_id,
        program.config.context,
        program.assets.provenance,
        str(path),
    )


def cut(text: str, model: Opened, tokens: int) -> I64:
    """Return windows [windows, tokens] of a text as a model reads it; see `tokc.quality.perplexity`.

    Raises: TokcError if the model has no tokenizer or the text is shorter than one window.
    """
    if model.tokenizer_json is None:
        raise TokcError("the model has no tokenizer, so that no text can be read to it", where=model.where)
    tokenizer = Tokenizer.from_str(model.tokenizer_json)
    length = min(WINDOW, model.context)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found = windows(ids, count=max(1, tokens // length), length=length)
    if model.bos_token_id is not None and tokenizer.encode("a").ids[0] == model.bos_token_id:
        found[:, 0] = model.bos_token_id
    return found


def _text(path: Path | None) -> tuple[str, str]:
    if path is None:
        return evaluation_text(), BUNDLED
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TokcError(f"cannot read the text '{path}': {error}") from error


def _reference_of(request: Request) -> tuple[Path | None, str | None]:
    """Return the model to compare with, and a note where an artifact has none."""
    if request.reference is not None or not is_artifact(request.model):
        return request.reference, None
    provenance = Artifact.open(request.model, verify=False).manifest.provenance
    found = source_of(provenance, (request.model.absolute().parent, Path.cwd()))
    if found is not None:
        return found, None
    named = ", ".join(f"'{name}'" for name in sorted(provenance)) or "files that it does not name"
    return None, (
        f"compared with no model: name one, --reference MODEL (it was built from {named}, found neither "
        "beside it nor in this folder)"
    )


def source_of(provenance: Mapping[str, str], folders: tuple[Path, ...]) -> Path | None:
    """Return the model with just these files and hashes, a .gguf file or a folder, if `folders` have it."""
    for folder in folders:
        files = [folder / name for name in sorted(provenance)]
        if not files or not all(file.is_file() for file in files):
            continue
        if all(sha256(file) == provenance[file.name] for file in files):
            return files[0] if files[0].suffix == ".gguf" else folder
    return None


def _require_same_tokens(subject: Opened, reference: Opened, text: str, ids: I64) -> None:
    """Refuse two models between whose answers nothing can be compared."""
    problem = None
    if subject.run.vocab_size != reference.run.vocab_size:
        sizes = f"{subject.run.vocab_size} and {reference.run.vocab_size}"
        problem = f"the vocabularies differ: {sizes} tokens"
    elif subject.tokenizer_json != reference.tokenizer_json:
        other = cut(text, reference, ids.size)
        if other.shape != ids.shape or (other != ids).any():
            problem = "the tokenizers differ: the same text is not the same tokens"
    if problem is not None:
        hint = "compare with the model that it was made from"
        raise TokcError(problem, where=f"{subject.where} and {reference.where}", hint=hint)


def _difference(subject: Opened, reference: Opened) -> str | None:
    """Return what to say where the reference is not the very model that an artifact was built from."""
    changed = sorted(subject.provenance.items() ^ reference.provenance.items())
    if not changed:
        return None
    return f"the reference is not the file that this was built from: '{changed[0][0]}' differs"


def perplexity_of(nll: F64) -> Estimate:
    """Return a perplexity with its interval, of the mean negative log likelihoods of windows."""
    return Estimate.of(nll.tolist(), math.exp)


def divergence_of(scores: Scores, name: str) -> Divergence:
    """Return how far a model is from the reference `name` that it was scored beside."""
    rows, reference = scores.rows, scores.reference_nll
    assert rows is not None, "a comparison has rows"
    assert reference is not None, "a comparison has the reference's likelihoods"
    whole = rows.summary()
    return Divergence(
        reference=name,
        perplexity=perplexity_of(reference),
        ppl_ratio=Estimate.of((scores.nll - reference).tolist(), math.exp),
        kl_mean=Estimate.of(_by_window(rows.kl, scores), lambda kl: max(kl, 0.0)),
        kl_p99=whole.kl_p99,
        top1_agree=Estimate.of(_agreements(rows, scores), lambda share: min(max(share, 0.0), 1.0)),
        max_abs_logit_diff=whole.max_abs_logit_diff,
        mean_abs_logit_diff=whole.mean_abs_logit_diff,
    )


def _agreements(rows: Rows, scores: Scores) -> list[float]:
    return _by_window(rows.agree.astype(float), scores)


def _by_window(values: F64, scores: Scores) -> list[float]:
    means: list[float] = values.reshape(len(scores.nll), scores.scored).mean(axis=1).tolist()
    return means
