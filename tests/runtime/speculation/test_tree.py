"""Trees of drafted tokens: what a step is told of them, and what becomes of an accepted path."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokc.runtime.executors.base import TREE_NODES
from tokc.runtime.speculation.tree import TokenTree

TOKENS = 5


@st.composite
def drafts(draw: st.DrawFn) -> tuple[list[int], list[int | None]]:
    """Return tokens and parents, parents first, as drafting level by level gives them."""
    count = draw(st.integers(0, TREE_NODES))
    parents = [draw(st.none() | st.integers(0, node - 1)) if node else None for node in range(count)]
    return [draw(st.integers(0, TOKENS - 1)) for _ in parents], parents


def texts(tokens: list[int], parents: list[int | None]) -> list[tuple[int, ...]]:
    """Return the tokens from the root to each node."""
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(() if parent is None else found[parent]), token))
    return found


@given(drafts())
def test_arranging_keeps_every_path_and_puts_first_children_first(
    draft: tuple[list[int], list[int | None]],
) -> None:
    tree = TokenTree.arranged(*draft)
    arranged = texts(list(tree.tokens), list(tree.parents))
    assert sorted(arranged) == sorted(texts(*draft))
    given_order = [text for text in texts(*draft) if len(text) == 1]
    assert [text for text in arranged if len(text) == 1] == given_order
    node = None
    for depth, at in enumerate(tree.path(len(tree) - 1 if len(tree) else None)):
        assert tree.parents[at] == node
        node = at
        assert depth <= at
    if len(tree):
        spine = 0
        while spine + 1 < len(tree) and tree.parents[spine + 1] == spine:
            spine += 1
        assert tree.path(spine) == list(range(spine + 1))


@given(drafts(), st.integers(1, 1000))
def test_a_step_is_told_depth_place_and_ancestors(
    draft: tuple[list[int], list[int | None]], first: int
) -> None:
    tree = TokenTree.arranged(*draft)
    rows = tree.rows(first)
    assert rows.input_ids.tolist() == list(tree.tokens)
    assert rows.entries.tolist() == list(range(first, first + len(tree)))
    for node in range(len(tree)):
        *above, own = tree.path(node)
        assert own == node
        assert rows.positions[node] == first + len(above)
        mask = int(rows.ancestors.view(np.uint32)[node])
        assert [bit for bit in range(32) if mask >> bit & 1] == above
    assert {field.dtype for field in rows} == {np.dtype(np.int32)}


@given(drafts(), st.integers(1, 50), st.data())
def test_moved_entries_hold_the_path_from_the_first_on(
    draft: tuple[list[int], list[int | None]], first: int, data: st.DataObject
) -> None:
    tree = TokenTree.arranged(*draft)
    node = data.draw(st.sampled_from([None, *range(len(tree))]))
    cache = np.arange(first + TREE_NODES)
    sources, targets = tree.moves(node, first)
    for source, target in zip(sources, targets, strict=True):
        cache[target] = cache[source]
    path = tree.path(node)
    assert cache[: first + len(path)].tolist() == [*range(first), *(first + one for one in path)]


@given(drafts(), st.lists(st.integers(0, TOKENS - 1), max_size=TREE_NODES))
def test_sampled_tokens_are_followed_as_far_as_the_tree_has_them(
    draft: tuple[list[int], list[int | None]], sampled: list[int]
) -> None:
    tree = TokenTree.arranged(*draft)
    node, held = None, 0
    while held < len(sampled) and (child := tree.child(node, sampled[held])) is not None:
        node, held = child, held + 1
    walked = [tree.tokens[one] for one in tree.path(node)]
    assert walked == sampled[:held]
    known = set(texts(list(tree.tokens), list(tree.parents)))
    distinct = len(known) == len(tree)
    longest = max((n for n in range(len(sampled) + 1) if n == 0 or tuple(sampled[:n]) in known), default=0)
    assert held == longest if distinct else held <= longest


def test_what_is_no_tree_in_preorder_is_refused() -> None:
    with pytest.raises(AssertionError, match="node 2 does not follow its parent in preorder"):
        TokenTree((1, 2, 3, 4), (None, None, 0, 1))
    with pytest.raises(AssertionError, match=f"at most {TREE_NODES} nodes"):
        TokenTree((1,) * 33, (None,) * 33)
    with pytest.raises(AssertionError, match="node 0 comes before its parent"):
        TokenTree.arranged((1, 2), (1, None))
