"""What drafts tokens on an executor: a small model that reads the features of the one that verifies."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Batch, Float32s, Trees


class DraftRows(NamedTuple):
    """Hold what a draft says of the rows asked for, valid until its next step.

    Shapes: logits f32[rows, vocabulary], of medusa f32[rows, heads, vocabulary]; features f32[rows, hidden]
        to go on from, None of medusa, which does not.
    """

    logits: Float32s
    features: Float32s | None


class DraftExecutor(Protocol):
    """Runs steps of a draft. Its cache has the pages of the backbone's, so that block tables serve both.

    `kind` is eagle or medusa; `heads` how many tokens a row drafts at once; `vocabulary` i32[vocabulary] the
    token of each logit, None where they are all.
    """

    kind: str
    heads: int
    vocabulary: npt.NDArray[np.int32] | None

    @property
    def trees(self) -> Trees | None:
        """Return what says that steps may hold trees, None where they hold none."""
        ...

    def step(self, batch: Batch, features: Float32s) -> DraftRows:
        """Run one step; entry i is feature i, f32[tokens, hidden], and the token that follows it."""
        ...
