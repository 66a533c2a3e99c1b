"""Lets an artifact, or a model as it was imported, answer the tasks of the evaluation harness."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokc.cost.evaluation import TaskScore
from tokc.errors import TokcError
from tokc.evaluation import Progress, is_artifact
from tokc.quality.compiled import ArtifactRun
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokc.quality.harness import Parts
    from tokc.quality.running import ProgramRun


def score_tasks(
    model: Path, names: Sequence[str], threads: int | None = None, progress: Progress = lambda _: None
) -> tuple[TaskScore, ...]:
    """Return the scores of a model at tasks; see `tokc.quality.harness.run_tasks`.

    Raises: ModuleNotFoundError if lm_eval is not installed; TokcError if the model or a task is refused.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is said in our own way
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # reading a local file is told to nobody
    from tokc.quality.harness import HarnessModel, run_tasks

    parts = _of_artifact(model, threads) if is_artifact(model) else _of_model(model, threads)
    return run_tasks(names, HarnessModel(parts, progress))


def _of_artifact(path: Path, threads: int | None) -> "Parts":
    from tokc.quality.harness import Parts

    artifact = Artifact.open(path)
    model, context = artifact.manifest.model, artifact.manifest.limits.context
    return Parts(
        scorer=lambda: ArtifactRun(artifact, threads=threads),
        writer=lambda: EngineWriter(Engine.open(path, threads=threads, verify=False)),
        tokenizer=Tokenizer.of(artifact),
        prefix_token=_prefix(model.bos_token_id, model.eos_token_ids),
        context=context,
    )


def _of_model(path: Path, threads: int | None) -> "Parts":
    from tokc.importers import import_model
    from tokc.quality.harness import Parts
    from tokc.quality.running import ProgramRun

    program = import_model(path)
    text, config = program.assets.tokenizer_json, program.config
    if text is None:
        raise TokcError("the model has no tokenizer, so that no task can be read to it", where=str(path))
    tokenizer = Tokenizer(text)
    run: Callable[[], ProgramRun] = lambda: ProgramRun(program, threads=threads or 2)  # noqa: E731
    return Parts(
        scorer=run,
        writer=lambda: ProgramWriter(run(), tokenizer, frozenset(config.eos_token_ids)),
        tokenizer=tokenizer,
        prefix_token=_prefix(config.bos_token_id, config.eos_token_ids),
        context=config.context,
    )


def _prefix(bos: int | None, eos: Sequence[int]) -> int:
    """Return the token that a text without context follows: BOS, else an end of answers, else 0."""
    return next((token for token in (bos, *eos) if token is not None), 0)


class EngineWriter:
    """Continue prompts as the artifact's engine does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, prompt: list[int], most: int, stop: Sequence[str]) -> str:
        """Return the greedy continuation of a prompt."""
        return self._engine.generate(prompt, max_tokens=most, stop=tuple(stop)).text

    def close(self) -> None:
        """Let go of the model."""
        self._engine.close()


class ProgramWriter:
    """Continue prompts with a program in onnxruntime, which reads the whole text again for each token."""

    def __init__(self, run: "ProgramRun", tokenizer: Tokenizer, eos_ids: frozenset[int]) -> None:
        self._run, self._tokenizer, self._eos_ids = run, tokenizer, eos_ids

    def write(self, prompt: list[int], most: int, stop: Sequence[str]) -> str:
        """Return the greedy continuation of a prompt."""
        ids, text = list(prompt), ""
        for _ in range(most):
            token = int(self._run.answers(np.array(ids), len(ids) - 1)[0].argmax())
            if token in self._eos_ids:
                break
            ids.append(token)
            text = self._tokenizer.decode(ids[len(prompt) :])
            ends = [text.index(one) for one in stop if one in text]
            if ends:
                return text[: min(ends)]
        return text

    def close(self) -> None:
        """Let go of the model."""
        self._run.close()
