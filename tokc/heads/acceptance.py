"""How many drafted tokens would hold, computed as the runtime accepts them.

A draft is a chain of the likeliest tokens; it holds as far as it equals what follows in the model's own
greedy answer, and one token more is the model's. The next draft begins there.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokc.heads.features import Example
from tokc.heads.modules import Eagle, Medusa
from tokc.heads.rows import row_of

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Acceptance:
    """Count drafts: `held[j]` times the (j + 1)st token held of `reached[j]` times that it was to be seen.

    A place is reached if all before it held and the answer has a token there.
    """

    steps: int
    held: tuple[int, ...]
    reached: tuple[int, ...]

    @property
    def by_position(self) -> tuple[float, ...]:
        """Return the share of drafted tokens that hold where those before them do."""
        return tuple(h / r if r else 0.0 for h, r in zip(self.held, self.reached, strict=True))

    @property
    def mean_length(self) -> float:
        """Return the tokens a step makes, the model's own among them."""
        return 1.0 + sum(self.held) / self.steps if self.steps else 1.0

    def __add__(self, other: "Acceptance") -> "Acceptance":
        """Return the counts of both."""
        return Acceptance(
            self.steps + other.steps,
            tuple(a + b for a, b in zip(self.held, other.held, strict=True)),
            tuple(a + b for a, b in zip(self.reached, other.reached, strict=True)),
        )


def chain(hits: Flags) -> Acceptance:
    """Follow one answer; `hits[j, m]` says whether step j of a draft names the answer's token m + 1.

    The answer's first token is the model's own, of the step that reads the prompt. Shapes: hits [depth, n].
    """
    depth, tokens = hits.shape
    held, reached = [0] * depth, [0] * depth
    at, steps = 0, 0  # the last token of the answer that is known; a draft begins behind it
    while at + 1 < tokens:
        steps += 1
        accepted = 0
        for step in range(min(depth, tokens - 1 - at)):
            reached[step] += 1
            if not hits[step, at + step]:
                break
            held[step] += 1
            accepted += 1
        at += accepted + 1
    return Acceptance(steps, tuple(held), tuple(reached))


@torch.no_grad()
def acceptance(
    module: Medusa | Eagle,
    examples: Items[Example],
    *,
    embedding: Tensor,
    rows: Tensor,
    tokens: Tensor,
    depth: int,
) -> Mapping[str, Acceptance]:
    """Return the acceptance of drafts of `depth` tokens by task.

    `rows` [draft vocab, hidden] project, and `tokens` i64[draft vocab] are what they name.
    """
    found: dict[str, Acceptance] = {}
    nothing = Acceptance(0, (0,) * depth, (0,) * depth)
    for example in examples:
        row = row_of([example], embedding, 0)
        answer, task = example.passage.answer, example.passage.task
        made = [x[answer:] for x in module.predictions(row, depth)]
        named = torch.stack([tokens[(x @ rows.T).argmax(-1)] for x in made])
        hits = (named == row.tokens.roll(-1)[answer:]).cpu().numpy()
        found[task] = found.get(task, nothing) + chain(hits)
    return found


def total(by_task: Mapping[str, Acceptance]) -> Acceptance:
    """Return the counts of all tasks together."""
    first, *others = by_task.values()
    for other in others:
        first += other
    return first
