"""Tasks of the Language Model Evaluation Harness (`lm_eval`), answered by an artifact or an imported model.

Imports lm_eval, an optional extra; nothing else in tokc does.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tokc.cost.evaluation import Estimate, TaskScore
from tokc.errors import TokcError, UnknownOption
from tokc.quality.divergence import log_sums
from tokc.quality.perplexity import Answers
from tokc.quality.tasks import FOLDER
from tokc.runtime.tokenizer import Tokenizer

Progress = Callable[[str], object]

FILE_READERS = frozenset({"csv", "json", "parquet", "text"})  # what `datasets` reads without the hub
BUNDLED = "tokc"  # all tasks that come with tokc
OWN = "lm_eval:"  # before the name of a task that comes with lm_eval
MAX_NEW_TOKENS = 256  # where a task states no bound


class Scorer(Answers, Protocol):
    """Answer windows, and close."""

    def close(self) -> None:
        """Let go of the model."""
        ...


class Writer(Protocol):
    """Continue prompts, and close."""

    def write(self, prompt: list[int], most: int, stop: Sequence[str]) -> str:
        """Return the greedy continuation of a prompt, at most `most` tokens and up to a stop string."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a model answers with: `scorer` opens what scores tokens, `writer` what continues prompts.

    Only one of the two is open at a time.
    """

    scorer: Callable[[], Scorer]
    writer: Callable[[], Writer]
    tokenizer: Tokenizer
    prefix_token: int
    context: int


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """Answers the requests of lm_eval's tasks, one after the other."""

    def __init__(self, parts: Parts, progress: Progress = lambda _: None) -> None:
        """Answer with `parts`."""
        super().__init__()
        self._parts, self._progress = parts, progress

    @property
    def eot_token_id(self) -> int:
        """Return the token that a text without context is scored after."""
        return self._parts.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: FBT001
        """Return the tokens of a text."""
        special = True if add_special_tokens is None else add_special_tokens
        return self._parts.tokenizer.encode(string, add_special_tokens=special)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: FBT001, FBT002
        """Return the log likelihood of each continuation, and whether greedy decoding would have made it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log likelihood of each text, every token predicted from as much as the context holds."""
        totals = []
        with closing(self._parts.scorer()) as scorer:
            for (text,) in (request.args for request in requests):
                ids = self.tok_encode(text, add_special_tokens=False)
                cut = get_rolling_token_windows(ids, self.prefix_token_id, self._parts.context, 1)
                pairs = map(make_disjoint_window, cut)
                totals.append(sum(self._score(scorer, before, after)[0] for before, after in pairs))
        return totals

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return greedy continuations, each up to the first of its stop strings."""
        texts = []
        with closing(self._parts.writer()) as writer:
            for index, (context, options) in enumerate(request.args for request in requests):
                self._progress(f"item {index + 1} of {len(requests)}")
                until = options.get("until") or []
                until = [until] if isinstance(until, str) else until
                count = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
                ids = self.tok_encode(context)[count - self._parts.context :]
                texts.append(writer.write(ids, count, tuple(text for text in until if text)))
        return texts

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        found = []
        with closing(self._parts.scorer()) as scorer:
            for index, (_texts, context, continuation) in enumerate(requests):
                self._progress(f"item {index + 1} of {len(requests)}")
                found.append(self._score(scorer, context, continuation))
        return found

    def _score(self, scorer: Answers, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Return the log likelihood of a continuation, and whether greedy decoding would have made it."""
        ids = np.array([*context, *continuation][-self._parts.context - 1 :], np.int64)
        count = len(continuation)
        assert 0 < count < len(ids), "a continuation follows a context and fits the model's own"
        logits = scorer.answers(ids[:-1], len(ids) - 1 - count)
        chosen = logits[np.arange(count), ids[-count:]]
        greedy = bool((logits.argmax(axis=-1) == ids[-count:]).all())
        return float((chosen - log_sums(logits)).sum()), greedy


def run_tasks(names: Sequence[str], model: HarnessModel) -> tuple[TaskScore, ...]:
    """Return the scores of tasks: those that come with tokc, those of folders, or lm_eval's own.

    Local tasks read local files and nothing of the network; lm_eval's own fetch their data.
    Raises: UnknownOption if a name is none of a task; TokcError if a task cannot be read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with TemporaryDirectory() as cache:
        tasks = _load(names, cache)
        found = evaluate(model, tasks, bootstrap_iters=0, log_samples=True)
    assert found is not None, "one process has the results"
    scores = []
    for task, samples in sorted(found["samples"].items()):
        kinds = {(sample["filter"], metric) for sample in samples for metric in sample["metrics"]}
        for kind, metric in sorted(kinds):
            values = [float(sample[metric]) for sample in samples if sample["filter"] == kind]
            name = metric if kind == "none" else f"{metric} ({kind})"
            scores.append(TaskScore(task, name, len(values), _share(values)))
    return tuple(scores)


def _share(values: list[float]) -> Estimate:
    return Estimate.of(values, lambda share: min(max(share, 0.0), 1.0))


def _load(names: Sequence[str], cache: str) -> Any:
    """Return lm_eval's dictionary of tasks; data files are found beside the task that names them."""
    own = [name.removeprefix(OWN) for name in names if name.startswith(OWN)]
    folders = [FOLDER if name == BUNDLED else Path(name) for name in names if _is_folder(name)]
    manager = TaskManager(include_path=[FOLDER, *folders], include_defaults=bool(own))
    wanted = [name for name in names if not _is_folder(name) and not name.startswith(OWN)]
    for folder in folders:
        wanted += TaskManager(include_path=folder, include_defaults=False).all_subtasks
    missing = [name for name in (*wanted, *own) if name not in manager.all_tasks]
    if missing:
        known = TaskManager(include_path=[FOLDER, *folders], include_defaults=False).all_subtasks
        raise UnknownOption(
            f"unknown task '{missing[0]}'; choose from {BUNDLED}, {', '.join(known)}, a folder of tasks, "
            f"or {OWN}NAME for one of lm_eval's own"
        )
    return manager.load([*own, *(_local(name, manager, cache) for name in wanted)])


def _is_folder(name: str) -> bool:
    return name == BUNDLED or Path(name).is_dir()


def _local(name: str, manager: TaskManager, cache: str) -> Any:
    """Return the configuration of a local task, its data files named from the root of the file system."""
    path = manager.task_index[name].yaml_path
    config = load_yaml(path)
    if config.get("dataset_path") not in FILE_READERS:
        return name
    arguments = dict(config.get("dataset_kwargs") or {})
    files = arguments.get("data_files") or {}
    named = files.items() if isinstance(files, dict) else [("train", files)]
    found = {split: [_beside(file, path) for file in _listed(some)] for split, some in named}
    settings = {"cache_dir": cache, "data_files": found}
    return {**config, "task": name, "dataset_kwargs": {**arguments, **settings}}


def _beside(file: str, path: Path) -> str:
    """Return where a file lies that a task names from its own folder.

    Raises: TokcError if there is none.
    """
    if "://" in file:
        return file
    found = path.parent / file
    if not found.is_file():
        raise TokcError(f"there is no file '{file}' beside the task", where=str(path))
    return str(found)


def _listed(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files
