"""What a drafter is: it guesses the next tokens of sequences, a few at a time."""

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
class Branch:
    """A draft under way: at most `most` tokens behind a sequence's own, and how sure its drafter is of each.

    `chances` are the probabilities that each token holds if those before it do. At each place there are up to
    `width` other tokens, with how sure the drafter is of them; none is followed further.
    """

    sequence: Sequence
    most: int
    width: int = 0
    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    others: list[list[Guess]] = field(default_factory=list)

    def close(self) -> None:
        """Draft no further."""
        self.most = len(self.tokens)

    def tree(self, depth: int, others: Items[tuple[int, int]] = ()) -> TokenTree:
        """Return the first `depth` tokens and, by place and number there, `others`."""
        tokens, parents = self.tokens[:depth], [None, *range(depth - 1)][:depth]
        for place, which in others:
            tokens.append(self.others[place][which].token)
            parents.append(place - 1 if place else None)
        return TokenTree.arranged(tokens, parents)

    def add(self, token: int, confidence: float, others: Items[Guess] = ()) -> None:
        """Append a token, and the others at its place."""
        self.tokens.append(token)
        self.confidences.append(confidence)
        self.others.append(list(others))


class Computed(NamedTuple):
    """Say which rows of a step stay: those of a sequence's tokens from `start` on, in their order."""

    sequence: Sequence
    start: int
    rows: list[int]


class Drafter(Protocol):
    """Guesses tokens of several sequences at once."""

    @property
    def stride(self) -> int:
        """Return how many tokens a call drafts at most; 0 for all there are, at no cost."""
        ...

    @property
    def priors(self) -> tuple[float, ...]:
        """Return how likely tokens hold for each eighth of the drafter's confidence, before any was seen."""
        ...

    def due(self, sequence: Sequence) -> int | None:
        """Return how many tokens a first call would compute for a sequence; None if it cannot draft now."""
        ...

    def extend(self, branches: Items[Branch]) -> int:
        """Append at least one token to each branch or close it; returns how many tokens were computed."""
        ...

    def observe(self, computed: Items[Computed]) -> None:
        """See what a step computed, before the next one."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; its tokens are still there."""
        ...

    def close(self) -> None:
        """Let go of what the drafter alone uses."""
        ...


def draft_token(logits: Float32s, branch: Branch, vocabulary: npt.NDArray[np.int32] | None) -> None:
    """Add to a branch the token that would follow if f32[vocab] were the model's logits, and the likeliest.

    A drawn token is drawn with the number that the sampler will use for the same place, so that both say
    the same as far as their distributions do.
    """
    sequence, params = branch.sequence, branch.sequence.params
    if params.temperature == 0:
        place = int(logits.argmax())
        sharpness = 1.0
    else:
        index = sequence.output_length + len(branch.tokens)
        place = draw(logits, params, uniform_at(sequence.seed, index))
        sharpness = 1 / params.temperature
    weights = np.exp((logits - logits.max()) * np.float32(sharpness))
    total, found = float(weights.sum()), []
    for _ in range(1 + branch.width):
        token = place if vocabulary is None else int(vocabulary[place])
        found.append(Guess(token, float(weights[place]) / total))
        weights[place] = -1
        place = int(weights.argmax())
    branch.add(*found[0], found[1:])
