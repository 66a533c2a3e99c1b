"""What a drafter is: it guesses the next tokens of sequences, a few at a time."""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Float32s
from tokc.runtime.sampler import draw, uniform_at
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.tree import TokenTree


class Guess(NamedTuple):
    """A token, and the drafter's confidence in it."""

    token: int
    confidence: float


@dataclass(slots=True, eq=False)
class Node:
    """A drafted token behind its parent's, at a place of the draft from 0; the root is the sequence's last.

    `which` is 0 for the token that its drafter would draw there, and counts the others. `chance` is the
    probability that it holds if those before it do, `gain` that all of them do.
    """

    token: int
    place: int
    confidence: float = 1.0
    parent: "Node | None" = None
    which: int = 0
    chance: float = 1.0
    gain: float = 1.0
    children: "list[Node]" = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Draft:
    """A tree of tokens under way behind a sequence's own, paths of at most `most`.

    Behind a node there are a token and up to `width` others, which can be followed further if it `branches`.
    `open` are the nodes that can be followed, `frontier` those that the next call is to follow. `entries` are
    those of its drafter's cache behind the sequence's own, in the order in which nodes were followed.
    """

    sequence: Sequence
    most: int
    width: int = 0
    branches: bool = False
    root: Node = field(init=False)
    nodes: list[Node] = field(default_factory=list)
    open: list[Node] = field(init=False)
    frontier: list[Node] = field(init=False)
    entries: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin at the sequence's last token."""
        self.root = Node(self.sequence.tokens[-1], -1)
        self.open, self.frontier = [self.root], [self.root]

    def follow(self, node: Node, guesses: Iterable[Guess]) -> None:
        """Append what may follow an open node, the likeliest first, or nothing."""
        self.open.remove(node)
        place = node.place + 1
        for which, (token, confidence) in enumerate(guesses):
            child = Node(token, place, confidence, node, which)
            node.children.append(child)
            self.nodes.append(child)
            if place + 1 < self.most and (self.branches or not which):
                self.open.append(child)

    def close(self) -> None:
        """Draft no further."""
        self.open.clear()


def tree_of(nodes: Items[Node]) -> TokenTree:
    """Return nodes of one draft as a step verifies them; each comes behind its parent, if that is no root."""
    places: dict[Node | None, int] = {}
    parents = []
    for place, node in enumerate(nodes):
        places[node] = place
        parents.append(None if node.place == 0 else places[node.parent])
    return TokenTree.arranged([node.token for node in nodes], parents)


class Computed(NamedTuple):
    """Say which rows of a step stay: those of a sequence's tokens from `start` on, in their order."""

    sequence: Sequence
    start: int
    rows: list[int]


class Drafter(Protocol):
    """Guesses tokens of several sequences at once."""

    @property
    def stride(self) -> int:
        """Return how many places a call drafts at most; 0 for all there are, at no cost."""
        ...

    @property
    def branches(self) -> bool:
        """Say whether any node of a draft can be followed, several in a call; else only the first of each."""
        ...

    @property
    def priors(self) -> tuple[float, ...]:
        """Return how likely tokens hold for each eighth of the drafter's confidence, before any was seen."""
        ...

    def due(self, sequence: Sequence) -> int | None:
        """Return how many tokens a first call would compute for a sequence; None if it cannot draft now."""
        ...

    def extend(self, drafts: Items[Draft]) -> int:
        """Follow the frontier of each draft, or close it; returns how many tokens it computed."""
        ...

    def observe(self, computed: Iterable[Computed]) -> None:
        """See what a step computed, before the next one."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; its tokens are still there."""
        ...

    def close(self) -> None:
        """Let go of what the drafter alone uses."""
        ...


def follow_by(logits: Float32s, draft: Draft, node: Node, vocabulary: npt.NDArray[np.int32] | None) -> None:
    """Follow a node by what would come next if f32[vocab] were the model's logits, and the likeliest others.

    A drawn token is drawn with the number that the sampler will use for the same place, so that both say
    the same as far as their distributions do.
    """
    sequence, params = draft.sequence, draft.sequence.params
    best = int(logits.argmax())
    largest, place, sharpness = logits[best], best, 1.0
    if params.temperature > 0:
        index = sequence.output_length + node.place + 1
        place = draw(logits, params, uniform_at(sequence.seed, index))
        sharpness = 1 / params.temperature
    weights = (logits - largest) * np.float32(sharpness)
    np.exp(weights, out=weights)
    total, found = float(weights.sum()), []
    for _ in range(1 + draft.width):
        token = place if vocabulary is None else int(vocabulary[place])
        found.append(Guess(token, float(weights[place]) / total))
        weights[place] = -1
        place = int(weights.argmax())
    draft.follow(node, found)
