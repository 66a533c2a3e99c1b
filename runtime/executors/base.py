"""What an executor is: a device that runs one ragged step of the model over a paged cache."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """Hold one step: the tokens of all its sequences on one axis, each sequence's in ascending position.

    Shapes: input_ids, positions, sequences i32[tokens] (`sequences` is a row of `block_tables`),
        block_tables i32[seqs, blocks], logit_rows i32[rows] (tokens whose logits are wanted).
    Rows and entries of block_tables that no token of the step reaches hold any page; it may be a view.
    """

    input_ids: Int32s
    positions: Int32s
    sequences: Int32s
    block_tables: Int32s
    logit_rows: Int32s


class Executor(Protocol):
    """Runs steps; limits are in tokens, pages and sequences. Used by one thread at a time."""

    vocab_size: int
    page_size: int
    num_pages: int
    max_tokens: int
    max_seqs: int
    context_length: int

    def step(self, batch: Batch) -> Float32s:
        """Run one step; returns logits f32[rows, vocab], valid until the next step."""
        ...

    @property
    def likeliest(self) -> Int32s | None:
        """Return the token of the largest logit of each row of the last step, i32[rows]; of equals the first.

        None where the device does not find it. Valid until the next step.
        """
        ...

    def close(self) -> None:
        """Let go of memory and threads; calling it again is allowed."""
        ...
