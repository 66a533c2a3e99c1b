"""What an executor is: a device that runs one ragged step of the model over a paged cache."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tokc.errors import RequestRefused

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
LIKELIEST = "likeliest"  # the output of a plan that tells the tokens; without it the host finds them
# An input of a plan, and its outputs that help to draw; without them the host looks at every logit.
SCALES, BLOCK_MAXIMA, BLOCK_SUMS = "scales", "block_maxima", "block_sums"
TREE_NODES = 32  # of a sequence's tree, besides the token that it grows from


class Batch(NamedTuple):
    """Hold one step: the tokens of all its sequences on one axis, each sequence's in ascending position.

    Shapes: input_ids, positions, sequences i32[tokens] (`sequences` is a row of `block_tables`),
        block_tables i32[seqs, blocks], logit_rows i32[rows] (tokens whose logits are wanted).
    Rows and entries of block_tables that no token of the step reaches hold any page; it may be a view.
    A step with trees of alternative tokens (`tokc.runtime.speculation.tree`) has entries, ancestors
        i32[tokens] besides: the entry of its sequence's cache that a token's key and value go to, and the
        earlier nodes that it follows, bit i for entry i of its tree. A token that continues its sequence has
        its position and 0. Tokens of one sequence need not ascend then.
    scales f32[rows] is 1 / temperature of the rows that are drawn from, 0 of others; None if none is.
    """

    input_ids: Int32s
    positions: Int32s
    sequences: Int32s
    block_tables: Int32s
    logit_rows: Int32s
    entries: Int32s | None = None
    ancestors: Int32s | None = None
    scales: Float32s | None = None


class LogitBlocks(NamedTuple):
    """What a step found of each block of logits, in the rows that have a scale.

    Shapes: maxima, sums f32[rows, blocks]; vocab / blocks columns are one block. A sum is of
    exp(scale * (logit - largest of the row)), the exponent in f32; its relative error is below 1e-6.
    """

    maxima: Float32s
    sums: Float32s


class Trees(Protocol):
    """What an executor offers where its steps may hold trees."""

    def move(self, sources: Int32s, targets: Int32s) -> None:
        """Copy entries of the cache of all layers, one after the other: i32[moves].

        Entry e is slot e % page_size of page e // page_size.
        """
        ...


def refuse_trees(batch: Batch) -> None:
    """Refuse a step with trees.

    Raises: RequestRefused if the batch has any.
    """
    if batch.entries is not None or batch.ancestors is not None:
        raise RequestRefused(
            "the artifact's steps hold no trees", hint="build it with the pass admit-trees, for a CPU"
        )


class Logits(Protocol):
    """Logits f32[rows, vocab]: an array, or rows that stay on a device until one is asked for."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, row: int, /) -> Float32s:
        """Return one row, f32[vocab]."""
        ...

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> Float32s:
        """Return all rows."""
        ...


class Executor(Protocol):
    """Runs steps; limits are in tokens, pages and sequences. Used by one thread at a time."""

    vocab_size: int
    page_size: int
    num_pages: int
    max_tokens: int
    max_seqs: int
    context_length: int

    @property
    def trees(self) -> Trees | None:
        """Return what moves accepted tokens together, None where steps hold no trees."""
        ...

    def step(self, batch: Batch) -> Logits:
        """Run one step; returns logits f32[rows, vocab], valid until the next step."""
        ...

    @property
    def likeliest(self) -> Int32s | None:
        """Return the token of the largest logit of each row of the last step, i32[rows]; of equals the first.

        None where the device does not find it. Valid until the next step.
        """
        ...

    @property
    def blocks(self) -> LogitBlocks | None:
        """Return what helps to draw from the last step's logits, None where the device does not find it."""
        ...

    def close(self) -> None:
        """Let go of memory and threads; calling it again is allowed."""
        ...
