"""A tree of drafted tokens: what one step is told of it, and the walk down it by the sampled tokens.

A node's tokens from the root on are one draft; drafts that begin alike share nodes. Nodes lie in preorder,
the first child of each first, so that the path of first children has its entries where they would be
without a tree: such a path is kept as it is, and of any other what was accepted is moved together.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from tokc.runtime.executors.base import TREE_NODES, Int32s


class TreeRows(NamedTuple):
    """Hold the fields of a Batch for the nodes of a tree, i32[nodes] each."""

    input_ids: Int32s
    positions: Int32s
    entries: Int32s
    ancestors: Int32s


@dataclass(frozen=True)
class TokenTree:
    """Hold drafted tokens in preorder; `parents` are earlier nodes, None for the sequence's last token."""

    tokens: tuple[int, ...]
    parents: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Require preorder, and no more nodes than a step takes."""
        assert len(self.tokens) == len(self.parents), "every node has a token and a parent"
        assert len(self.tokens) <= TREE_NODES, f"a tree has at most {TREE_NODES} nodes"
        path: list[int] = []
        for node, parent in enumerate(self.parents):
            while path and path[-1] != parent:
                path.pop()
            assert parent is None or path, f"node {node} does not follow its parent in preorder"
            path.append(node)

    @classmethod
    def arranged(cls, tokens: Items[int], parents: Items[int | None]) -> Self:
        """Return the tree in preorder; parents come before their children, and siblings keep their order."""
        if list(parents) == [None, *range(len(parents) - 1)]:
            return cls(tuple(tokens), tuple(parents))
        children: dict[int | None, list[int]] = {None: []}
        for node, parent in enumerate(parents):
            assert parent in children, f"node {node} comes before its parent"
            children[parent].append(node)
            children[node] = []
        order: list[int] = []
        left = children[None][::-1]
        while left:
            order.append(left.pop())
            left += children[order[-1]][::-1]
        places: dict[int | None, int | None] = {None: None} | {node: at for at, node in enumerate(order)}
        return cls(tuple(tokens[node] for node in order), tuple(places[parents[node]] for node in order))

    def __len__(self) -> int:
        """Return how many nodes there are."""
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Say whether every node has at most one child, so that a step need not be told of a tree."""
        return self.parents == (None, *range(len(self) - 1))[: len(self)]

    @property
    def depth(self) -> int:
        """Return how many nodes the longest path has."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent is None else depths[parent] + 1)
        return max(depths, default=0)

    def path(self, node: int | None) -> list[int]:
        """Return the nodes from the root to `node`, which is the last; none for None."""
        found: list[int] = []
        while node is not None:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def rows(self, first: int) -> TreeRows:
        """Return what a step is told, where the tree's nodes take the cache's entries from `first` on."""
        positions: list[int] = []
        masks: list[int] = []
        for node, parent in enumerate(self.parents):
            above = -1 if parent is None else parent
            positions.append(first if parent is None else positions[above] + 1)
            masks.append(0 if parent is None else masks[above] | 1 << above)
            assert positions[node] <= first + node, "a node's ancestors lie before it"
        return TreeRows(
            input_ids=np.array(self.tokens, np.int32),
            positions=np.array(positions, np.int32),
            entries=np.arange(first, first + len(self), dtype=np.int32),
            ancestors=np.array(masks, np.uint32).view(np.int32),
        )

    def child(self, node: int | None, token: int) -> int | None:
        """Return the first child of `node` that is `token`, None if there is none."""
        first = 0 if node is None else node + 1
        nodes = range(first, len(self))
        return next((at for at in nodes if self.parents[at] == node and self.tokens[at] == token), None)

    def moves(self, node: int | None, first: int) -> tuple[list[int], list[int]]:
        """Return (sources, targets): the entries to copy, in order, so that a path lies from `first` on.

        `node` is the path's last, None where nothing was accepted.
        """
        pairs = [(first + one, first + depth) for depth, one in enumerate(self.path(node)) if one != depth]
        return [source for source, _ in pairs], [target for _, target in pairs]
