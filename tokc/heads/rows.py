"""Rows of tokens: several passages one after another, so that a step of training has few gaps."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokc.heads.features import Example


@dataclass(frozen=True)
class Row:
    """Hold passages one after another, tokens on the first axis.

    `tokens`, `positions` within the passage and `sequences` i64[tokens]; `features` and `embedded`, the
    embedding of the token behind, f32[tokens, hidden]. `targets` i64[n] are the places at which a draft is
    to say what the model says: those whose next token is of an answer, and that have enough before them.
    """

    tokens: Tensor
    positions: Tensor
    sequences: Tensor
    features: Tensor
    embedded: Tensor
    targets: Tensor

    def visible(self, behind: int) -> Tensor:
        """Return which places [query, key] are of the query's passage and at least `behind` before it."""
        same = self.sequences[:, None] == self.sequences[None, :]
        return same & (self.positions[None, :] <= self.positions[:, None] - behind)


def row_of(examples: Items[Example], embedding: Tensor, steps: int) -> Row:
    """Return the row of some passages; `steps` tokens must be before a target."""
    lengths = [len(example.passage.tokens) for example in examples]
    tokens = np.concatenate([example.passage.tokens for example in examples]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    answers = np.repeat([example.passage.answer for example in examples], lengths)
    last = np.repeat(lengths, lengths) - 1
    wanted = (positions + 1 >= answers) & (positions < last) & (positions >= steps)
    features = np.concatenate([example.features for example in examples]).astype(np.float32)
    ids = torch.from_numpy(tokens).to(embedding.device)
    return Row(
        tokens=ids,
        positions=torch.from_numpy(positions).to(embedding.device),
        sequences=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(embedding.device),
        features=torch.from_numpy(features).to(embedding.device),
        embedded=embedding[ids.roll(-1)],
        targets=torch.from_numpy(np.flatnonzero(wanted)).to(embedding.device),
    )


def packed(examples: Items[Example], order: Items[int], tokens: int) -> list[list[int]]:
    """Return rows of indices: passages in the given order, each in the first of the open rows with room."""
    rows: list[list[int]] = []
    room: list[int] = []
    first_open = 0
    for index in order:
        length = len(examples[index].passage.tokens)
        at = next((at for at in range(first_open, len(rows)) if room[at] >= length), None)
        if at is None:
            rows.append([])
            room.append(tokens)
            at = len(rows) - 1
        rows[at].append(index)
        room[at] -= length
        first_open = max(first_open, len(rows) - OPEN_ROWS)
    return rows


OPEN_ROWS = 8
