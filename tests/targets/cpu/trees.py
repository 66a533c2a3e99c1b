"""Steps that hold trees, beside tokens that continue their sequence."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.targets.cpu.paged import Array, Batch
from tokc.runtime.speculation.tree import TokenTree


@dataclass(frozen=True)
class TreeBatch(Batch):
    """The integer inputs of a step with trees."""

    entries: Array
    ancestors: Array

    @property
    def integers(self) -> list[Array]:
        """Return the integer inputs in the kernels' order."""
        batch = [self.positions, self.sequences, self.block_tables]
        return [*batch, self.entries, self.ancestors, self.info]

    def rows(self, picked: Any) -> "TreeBatch":
        """Return the batch of some of the tokens."""
        fields = (self.positions, self.sequences, self.entries, self.ancestors)
        positions, sequences, entries, ancestors = (field[picked].copy() for field in fields)
        return TreeBatch(positions, sequences, self.block_tables, entries, ancestors)


def random_tree(rng: np.random.Generator, nodes: int) -> TokenTree:
    """Return a tree in preorder: deep, wide, or between, as `rng` has it."""
    deep = rng.choice([0.2, 0.5, 0.9])
    parents: list[int | None] = []
    for node in range(nodes):
        follows = node - 1 if rng.random() < deep else int(rng.integers(-1, node))
        parents.append(follows if node and follows >= 0 else None)
    return TokenTree.arranged(range(nodes), parents)


def batch_with_trees(
    starts: list[tuple[int, int, TokenTree]], rng: np.random.Generator, *, pages: int, blocks: int
) -> TreeBatch:
    """Return a step: sequence i runs positions [first, last), then a tree that grows from the last."""
    fields: list[list[Array]] = [[], [], [], []]
    tables = rng.permutation(pages)[: len(starts) * blocks].astype(np.int32).reshape(-1, blocks)
    for index, (first, last, tree) in enumerate(starts):
        rows, chain = tree.rows(last), np.arange(first, last, dtype=np.int32)
        found = (
            np.concatenate([chain, rows.positions]),
            np.full(len(chain) + len(tree), index, np.int32),
            np.concatenate([chain, rows.entries]),
            np.concatenate([np.zeros_like(chain), rows.ancestors]),
        )
        for field, values in zip(fields, found, strict=True):
            field.append(values)
    positions, sequences, entries, ancestors = map(np.concatenate, fields)
    return TreeBatch(positions, sequences, tables, entries, ancestors)
