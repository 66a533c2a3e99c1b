"""Self-distillation: the artifact itself writes the text that its heads are trained on.

Answers are kept as token ids, a shard of requests at a time, so that a run that was interrupted goes on with
the next shard. A request's answer depends on nothing but the artifact, the seed and its place.
Source: the text of Medusa-2's self-distillation, arXiv:2401.10774, sec. 2.3.2; half of it greedy.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import file_written_aside
from tokc.errors import TokcError
from tokc.heads.prompts import TASKS, Prompt, Split, held_out_prompts, prompt
from tokc.runtime.engine import Engine
from tokc.runtime.request import Request
from tokc.runtime.sequence import SamplingParams

Progress = Callable[[str], None]

ANSWER_TOKENS = 256
SHARD_REQUESTS = 128
DRAWN_TEMPERATURES = (0.7, 1.0)
# The prompts that `bench/speculation.py` measures have seed 0; training stops early by others.
VALIDATION_SEED = 1
VALIDATION_PROMPTS = 12


@dataclass(frozen=True)
class Passage:
    """A sequence to train on: tokens i32[n], of which those from `answer` on are the model's own."""

    tokens: npt.NDArray[np.int32]
    answer: int
    task: str

    @property
    def answer_tokens(self) -> int:
        """Return how many tokens are to be predicted."""
        return len(self.tokens) - self.answer


@dataclass(frozen=True)
class Setting:
    """What decides the text: of which weights, how many answer tokens, drawn by which seed.

    `text_sha256` is of a text that is trained on instead; held-out answers there are in any case.
    """

    weights_sha256: str
    tokens: int
    seed: int = 0
    text_sha256: str | None = None
    answer_tokens: int = ANSWER_TOKENS
    validation_prompts: int = VALIDATION_PROMPTS


class Distillation:
    """The answers in a folder, made as far as they are not there yet."""

    def __init__(self, folder: Path, setting: Setting, engine: Callable[[], Engine]) -> None:
        """Take a folder of the same artifact and seed, or make one; `engine` opens the artifact if needed.

        Raises: TokcError if the folder has the answers of another artifact or seed.
        """
        self.folder, self.setting = folder, setting
        self._open = engine
        self._engine: Engine | None = None
        folder.mkdir(parents=True, exist_ok=True)
        stated = {name: value for name, value in asdict(setting).items() if name != "tokens"}
        require_same(folder / "text.json", stated, "the answers")

    def training(self, progress: Progress = lambda _: None) -> list[Passage]:
        """Return answers of at least the setting's tokens, and those that are missing are made."""
        passages: list[Passage] = []
        shard = made = 0
        while made < self.setting.tokens:
            found = self._shard("training", shard, self._training_prompts)
            passages += found
            made += sum(passage.answer_tokens for passage in found)
            shard += 1
            progress(f"answers: {min(made, self.setting.tokens):,} of {self.setting.tokens:,} tokens")
        self._close()
        return passages

    def validation(self, progress: Progress = lambda _: None) -> list[Passage]:
        """Return greedy answers to prompts of documents that are kept from training."""
        progress("held-out answers")
        found = self._shard("held-out", 0, self._validation_prompts)
        self._close()
        return found

    def _training_prompts(self, shard: int) -> list[Prompt]:
        first, seed = shard * SHARD_REQUESTS, self.setting.seed
        return [prompt(first + index, "training", seed=seed) for index in range(SHARD_REQUESTS)]

    def _validation_prompts(self, _: int) -> list[Prompt]:
        count = self.setting.validation_prompts
        return [one for task in TASKS for one in held_out_prompts(task, count, seed=VALIDATION_SEED)]

    def _shard(self, name: str, shard: int, prompts: Callable[[int], list[Prompt]]) -> list[Passage]:
        path = self.folder / f"{name}-{shard:05}.npz"
        if not path.exists():
            if self._engine is None:
                self._engine = self._open()
            first = shard * SHARD_REQUESTS
            split: Split = "training" if name == "training" else "held out"
            write_passages(path, list(self._answered(self._engine, prompts(shard), first, split)))
        return read_passages(path)

    def _answered(self, engine: Engine, prompts: list[Prompt], first: int, split: Split) -> Iterator[Passage]:
        room = engine.context_length - self.setting.answer_tokens
        if room < 1:
            raise TokcError(
                f"a context of {engine.context_length} tokens has no room for answers of"
                f" {self.setting.answer_tokens}",
                hint="build with a larger --context",
            )
        texts = [_tokens(engine, one)[-room:] for one in prompts]
        requests = [engine.request(text, self._sampling(first + at, split)) for at, text in enumerate(texts)]
        asyncio.run(_finish(engine, requests))
        for one, request in zip(prompts, requests, strict=True):
            sequence = request.sequence
            yield Passage(np.array(sequence.tokens, np.int32), sequence.prompt_length, one.task)

    def _sampling(self, index: int, split: Split) -> SamplingParams:
        random = np.random.default_rng([self.setting.seed, index])
        drawn = split == "training" and random.random() < 0.5
        temperature = float(random.uniform(*DRAWN_TEMPERATURES)) if drawn else 0.0
        return SamplingParams(max_tokens=self.setting.answer_tokens, temperature=temperature, seed=index)

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def require_same(path: Path, stated: dict[str, object], what: str) -> None:
    """Write what a folder's files were made of, or check that it is the same.

    Raises: TokcError naming what differs.
    """
    if not path.exists():
        path.write_text(json.dumps(stated, indent=1))
        return
    there = json.loads(path.read_text())
    differing = sorted(name for name in stated if there.get(name) != stated[name])
    if differing:
        name = differing[0]
        raise TokcError(
            f"{what} there were made with {name} '{there.get(name)}', not '{stated[name]}'",
            where=str(path.parent),
            hint="give another --work, or remove that folder",
        )


def write_passages(path: Path, passages: Items[Passage]) -> None:
    """Write passages to one file, aside first."""
    with file_written_aside(path, "cannot keep answers", str(path)) as aside, aside.open("wb") as file:
        np.savez(
            file,
            tokens=np.concatenate([passage.tokens for passage in passages]),
            lengths=np.array([len(passage.tokens) for passage in passages], np.int32),
            answers=np.array([passage.answer for passage in passages], np.int32),
            tasks=np.array([passage.task for passage in passages]),
        )


def read_passages(path: Path) -> list[Passage]:
    """Read what `write_passages` wrote."""
    with np.load(path) as stored:
        pieces = np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])
        rows = zip(pieces, stored["answers"], stored["tasks"], strict=True)
        return [Passage(tokens, int(answer), str(task)) for tokens, answer, task in rows]


async def _finish(engine: Engine, requests: Items[Request]) -> None:
    async for _ in engine.follow_all(requests):
        pass


def _tokens(engine: Engine, one: Prompt) -> list[int]:
    if one.chat and engine.chat_template is not None:
        return engine.chat_prompt(one.messages)
    return engine.tokenizer.encode(one.text)
