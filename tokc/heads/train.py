"""From a model or an artifact to a file of heads and its card: text, features, training, writing."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokc.errors import TokcError, UnknownOption
from tokc.heads.backbone import Backbone, FeatureRun, backbone_of
from tokc.heads.card import Report, card
from tokc.heads.distillation import (
    ANSWER_TOKENS,
    VALIDATION_PROMPTS,
    Distillation,
    Passage,
    Setting,
)
from tokc.heads.features import FeatureStore
from tokc.heads.file import write_aside, write_heads
from tokc.heads.prompts import LICENCES
from tokc.heads.training import KINDS, Kind, Plan, Trained, Training
from tokc.heads.vocabulary import coverage, draft_vocabulary
from tokc.runtime.artifact import MANIFEST, Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.executors.cpu import host_features, usable_cores

Progress = Callable[[str], None]

DISTILLED_TOKENS = 1_000_000
DRAFT_VOCABULARY = 8192
WINDOW = 512
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as the kernel spells what makes bf16 fast


@dataclass(frozen=True)
class Request:
    """What to train: heads of a kind for a model, built as `tokc build` does, or for an artifact.

    `text` is a file to train on instead of `distilled` tokens of the model's own answers. `work` keeps
    answers, features and checkpoints, by which an interrupted run goes on and other heads begin. Answers have
    at most `answer_tokens`; `held_out_prompts` a task are evaluated on.
    """

    model: Path
    kind: Kind
    out: Path
    work: Path
    text: Path | None = None
    distilled: int = DISTILLED_TOKENS
    draft_vocabulary: int = DRAFT_VOCABULARY
    epochs: int = 3
    seed: int = 0
    threads: int | None = None
    answer_tokens: int = ANSWER_TOKENS
    held_out_prompts: int = VALIDATION_PROMPTS


def named_kind(name: str) -> Kind:
    """Return a kind by its name.

    Raises: UnknownOption listing the kinds.
    """
    for kind in KINDS:
        if name == kind:
            return kind
    raise UnknownOption(f"unknown kind of heads '{name}'; choose from {', '.join(KINDS)}")


def train_heads(request: Request, progress: Progress = lambda _: None) -> Report:
    """Train heads, write them and their card, and return what was found.

    Raises: TokcError if the artifact gives no features, the text cannot be read, or `work` holds something
        else.
    """
    request.work.mkdir(parents=True, exist_ok=True)
    artifact = _artifact(request, progress)
    backbone = backbone_of(artifact)
    passages, held_out = _text(request, artifact, backbone, progress)
    store = FeatureStore(request.work, partial(FeatureRun, artifact, threads=request.threads))
    examples = store.examples("training-features", passages, progress)
    held_out_examples = store.examples("held-out-features", held_out)
    vocabulary = draft_vocabulary(passages, request.draft_vocabulary, backbone.config.vocab)
    plan = Plan(request.kind, request.epochs, request.seed, bf16=_has_bf16())
    torch.set_num_threads(request.threads or usable_cores())
    checkpoint = request.work / f"{request.kind}.pt"
    training = Training(plan, backbone, vocabulary, examples, checkpoint)
    trained = training.run(held_out_examples, progress)
    report = Report(
        out=request.out,
        plan=plan,
        backbone=backbone.name,
        pipeline=backbone.pipeline,
        hidden=backbone.config.hidden,
        vocab=backbone.config.vocab,
        draft_vocab=len(vocabulary),
        coverage=coverage(held_out, vocabulary),
        source="answers of the model itself" if request.text is None else f"the file '{request.text.name}'",
        licences=LICENCES if request.text is None else f"those of '{request.text.name}'",
        texts=len(passages),
        answer_tokens=sum(passage.answer_tokens for passage in passages),
        held_out_texts=len(held_out),
        steps=training.step,
        stopped_early=trained.stopped_early,
        points=tuple(trained.points),
        by_task=trained.by_task,
    )
    write_heads(request.out, _tensors(trained, vocabulary, backbone), _metadata(report, backbone))
    write_aside(request.out.with_suffix(".md"), card(report).encode())
    return report


def _artifact(request: Request, progress: Progress) -> Path:
    """Return an artifact that exposes its features: the one given, or one built of the model."""
    if (request.model / MANIFEST).is_file():
        return request.model
    from tokc.compiler import Request as Build
    from tokc.compiler import build, prepare

    path = request.work / f"{request.model.stem}.tokc"
    if not (path / MANIFEST).is_file():
        _, usual = prepare(Build(request.model))
        build(Build(request.model, passes=f"expose-features,{usual}"), path, progress)
    return path


def _text(
    request: Request, artifact: Path, backbone: Backbone, progress: Progress
) -> tuple[list[Passage], list[Passage]]:
    """Return the passages to train on, and greedy answers held out from them."""
    given = None if request.text is None else _read(request.text)
    setting = Setting(
        weights_sha256=backbone.weights_sha256,
        tokens=request.distilled,
        seed=request.seed,
        text_sha256=None if given is None else hashlib.sha256(given.encode()).hexdigest(),
        answer_tokens=request.answer_tokens,
        validation_prompts=request.held_out_prompts,
    )
    engine = partial(Engine.open, artifact, threads=request.threads)
    distillation = Distillation(request.work, setting, engine)
    held_out = distillation.validation(progress)
    if given is None:
        return distillation.training(progress), held_out
    return _windows(given, Artifact.open(artifact, verify=False), str(request.text)), held_out


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokcError(f"cannot read the text '{path}': {error}") from error


def _windows(text: str, artifact: Artifact, where: str) -> list[Passage]:
    """Cut a text into passages of which every token but the first is to be predicted."""
    from tokc.runtime.tokenizer import Tokenizer

    ids = np.array(Tokenizer.of(artifact).encode(text), np.int32)
    length = min(WINDOW, artifact.manifest.limits.context)
    pieces = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    if not pieces:
        raise TokcError(
            f"the text has {len(ids)} tokens, fewer than one window of {length}",
            where=where,
            hint="give a longer text",
        )
    return [Passage(piece, 1, "text") for piece in pieces]


def _tensors(
    trained: Trained, vocabulary: npt.NDArray[np.int64], backbone: Backbone
) -> Mapping[str, npt.NDArray[Any]]:
    tensors: dict[str, npt.NDArray[Any]] = {
        name: np.ascontiguousarray(value.float().cpu().numpy()) for name, value in trained.weights.items()
    }
    if len(vocabulary) < backbone.config.vocab:
        tensors["d2t"] = vocabulary - np.arange(len(vocabulary))
    return tensors


def _metadata(report: Report, backbone: Backbone) -> Mapping[str, str]:
    found = report.acceptance
    return {
        "kind": report.plan.kind,
        "hidden": str(report.hidden),
        "vocab": str(report.vocab),
        "tokenizer_sha256": backbone.tokenizer_sha256,
        "backbone": _without_outputs(backbone.pipeline),
        "weights_sha256": backbone.weights_sha256,
        "held_out_acceptance": f"{sum(found.held) / max(1, sum(found.reached)):.4f}",
        "held_out_length": f"{found.mean_length:.4f}",
    }


def _without_outputs(pipeline: str) -> str:
    """Return a pipeline less what adds outputs and drafts: the passes that decide the served weights."""
    passes = str(pipeline).split(",")
    return ",".join(spec for spec in passes if not spec.startswith(("expose-features", "attach-draft")))


def _has_bf16() -> bool:
    return torch.cuda.is_available() or bool(BF16 & host_features())
