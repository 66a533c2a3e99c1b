"""Drafters of the tests: they draft what they were told, right or wrong."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

from tests.runtime.hash_model import EOS, HashModel, byte_tokenizer
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import TREE_NODES
from tokc.runtime.sequence import Result, SamplingParams
from tokc.runtime.sequence import Sequence as Tokens
from tokc.runtime.speculation.drafter import Computed, Draft, Drafter, Guess, Node
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Rest, Speculation


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
        branches: bool = False,
    ) -> None:
        self.stride, self.branches, self._vocab = stride, branches, vocab
        self._answers, self._random = answers or {}, Random(seed)
        self.observed: list[Computed] = []
        self.forgotten = 0

    def due(self, sequence: Tokens) -> int | None:
        return 1

    def extend(self, drafts: Sequence[Draft]) -> int:
        for draft in drafts:
            for node in draft.frontier:
                if self._random.random() < 0.1:
                    draft.follow(node, ())
                else:
                    self._follow(draft, node)
            if self.stride != 1:
                draft.close()
        return sum(len(draft.frontier) for draft in drafts)

    def _follow(self, draft: Draft, node: Node) -> None:
        for _ in range(max(self.stride, 1)):
            if node in draft.open:
                draft.follow(node, [self._guess(draft, node) for _ in range(1 + draft.width)])
                node = node.children[0]

    def _guess(self, draft: Draft, node: Node) -> Guess:
        sequence = draft.sequence
        answer = self._answers.get(tuple(sequence.tokens[: sequence.prompt_length]), ())
        place = sequence.output_length + node.place + 1
        if place < len(answer) and self._random.random() < 0.7:
            return Guess(answer[place], self._random.random())
        return Guess(self._random.randrange(self._vocab), self._random.random())

    def observe(self, computed: Iterable[Computed]) -> None:
        self.observed += computed

    def forget(self, sequence: Tokens) -> None:
        self.forgotten += 1

    def close(self) -> None:
        pass


class Awake(Rest):
    """Never rests."""

    def goes_on(self, sequences: int) -> bool:
        return False


class Eager(Speculation):
    """Drafts and verifies all it can, whatever it costs, so that drafts fail often."""

    def __init__(self, drafter: Drafter | None = None, **options: Any) -> None:
        super().__init__(drafter or NgramDrafter(), **options)
        self._rest = Awake()

    def _measures_plain(self, tokens: int) -> bool:
        return False

    def _drafted(self, drafts: Any, setting: Any, grow: Any) -> dict[Draft, list[Node]]:
        room, places = setting.room, {}
        for draft in drafts:
            most = TREE_NODES if draft.branches else draft.most * (1 + draft.width)
            places[draft] = min(grow(draft.sequence, min(most, room)), TREE_NODES)
            draft.most = min(draft.most, places[draft])
            room -= places[draft]
        while going := [draft for draft in drafts if draft.open and len(draft.nodes) < places[draft]]:
            for draft in going:
                draft.frontier = draft.open[: places[draft] - len(draft.entries)]
            self._extend(going)
        found = {draft: draft.nodes[: places[draft]] for draft in drafts}
        return {draft: nodes for draft, nodes in found.items() if nodes}


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
