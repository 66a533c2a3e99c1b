"""Drafters of the tests: they draft what they were told, right or wrong."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from tests.runtime.hash_model import EOS, HashModel, byte_tokenizer
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import TREE_NODES
from tokc.runtime.sequence import Result, SamplingParams
from tokc.runtime.sequence import Sequence as Tokens
from tokc.runtime.speculation.drafter import Branch, Computed, Drafter, Guess
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation


class Arbitrary:
    """Drafts tokens that follow, as `answers` say by prompt, or any others, at random."""

    priors = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

    def __init__(
        self,
        answers: Mapping[tuple[int, ...], Sequence[int]] | None = None,
        *,
        seed: int = 0,
        vocab: int = 259,
        stride: int = 1,
    ) -> None:
        self.stride, self._vocab = stride, vocab
        self._answers, self._random = answers or {}, Random(seed)
        self.observed: list[Computed] = []
        self.forgotten = 0

    def due(self, sequence: Tokens) -> int | None:
        return 1

    def extend(self, branches: Sequence[Branch]) -> int:
        for branch in branches:
            if self._random.random() < 0.1:
                branch.close()
                continue
            for _ in range(max(self.stride, 1)):
                if len(branch.tokens) < branch.most:
                    others = [Guess(self._token(branch), self._random.random()) for _ in range(branch.width)]
                    branch.add(self._token(branch), self._random.random(), others)
        return len(branches)

    def _token(self, branch: Branch) -> int:
        sequence = branch.sequence
        answer = self._answers.get(tuple(sequence.tokens[: sequence.prompt_length]), ())
        place = sequence.output_length + len(branch.tokens)
        if place < len(answer) and self._random.random() < 0.7:
            return answer[place]
        return self._random.randrange(self._vocab)

    def observe(self, computed: Sequence[Computed]) -> None:
        self.observed += computed

    def forget(self, sequence: Tokens) -> None:
        self.forgotten += 1

    def close(self) -> None:
        pass


class Eager(Speculation):
    """Drafts and verifies all it can, whatever it costs, so that drafts fail often."""

    def __init__(self, drafter: Drafter | None = None, **options: Any) -> None:
        super().__init__(drafter or NgramDrafter(), **options)

    def _measures_plain(self, tokens: int) -> bool:
        return False

    def _drafted(self, branches: Any, setting: Any, grow: Any) -> list[Any]:
        room, size = setting.room, 1 + self._width
        for branch in branches:
            branch.most = min(branch.most, grow(branch.sequence, min(branch.most * size, room)) // size)
            room -= branch.most * size
        while going := [branch for branch in branches if len(branch.tokens) < branch.most]:
            self._extend(going)
        found = []
        for branch in branches:
            depth = min(branch.most, len(branch.tokens))
            others = [(place, at) for place in range(depth) for at in range(len(branch.others[place]))]
            if depth:
                found.append((branch, depth, others[: TREE_NODES - depth]))
        return found


def engine_of(executor: HashModel, speculation: Speculation | None = None, **options: Any) -> Engine:
    """Return an engine over an executor that the test holds; it needs no closing."""
    core = Core(executor, speculation=speculation, **options)
    return Engine(executor, byte_tokenizer(), eos_ids=[EOS], core=core)


def answers_of(engine: Engine, prompts: Sequence[Sequence[int]], **options: Any) -> list[Result]:
    """Return the answers of requests that run together; `seed` counts up from one to the next."""
    seed = options.pop("seed", 0)
    requests = [
        engine.request(list(prompt), SamplingParams(seed=seed + at, **options))
        for at, prompt in enumerate(prompts)
    ]
    for request in requests:
        engine._loop.submit(request)
    while not all(request.done for request in requests):
        engine.step()
    return [request.result() for request in requests]
