"""Pages: none is lost, none is lent twice, and one is shared only for the same tokens before it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokc.runtime.block_manager import BlockManager, extend_digests

PAGE, PAGES = 2, 6


class Lending(RuleBasedStateMachine):
    """Sequences of one to three full pages come, share what they find, and go."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(PAGES, PAGE)
        self.sequences: list[tuple[list[int], tuple[int, ...]]] = []
        self.content: dict[int, tuple[int, ...]] = {}

    @rule(tokens=st.lists(st.integers(0, 1), min_size=PAGE, max_size=3 * PAGE))
    def admit(self, tokens: list[int]) -> None:
        digests: list[bytes] = []
        extend_digests(digests, tokens, PAGE)
        pages = self.blocks.find(digests)
        for index, page in enumerate(pages):
            assert self.content[page] == tuple(tokens[: (index + 1) * PAGE]), (
                "a found page holds other tokens"
            )
        missing = len(digests) - len(pages)
        if missing > self.blocks.available - self.blocks.kept_among(pages):
            return
        self.blocks.take(pages)
        for index in range(len(pages), len(digests)):
            page = self.blocks.allocate()
            assert all(page not in held for held, _ in self.sequences), "a page in use was lent again"
            self.content[page] = tuple(tokens[: (index + 1) * PAGE])
            self.blocks.seal(page, digests[index])
            pages.append(page)
        self.sequences.append((pages, tuple(tokens)))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        pages, _ = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.blocks.release(pages)

    @invariant()
    def used_pages_are_those_that_sequences_hold(self) -> None:
        held = {page for pages, _ in self.sequences for page in pages}
        assert self.blocks.used == len(held)
        assert self.blocks.used + self.blocks.available == PAGES

    @invariant()
    def held_pages_keep_their_tokens(self) -> None:
        for pages, tokens in self.sequences:
            for index, page in enumerate(pages):
                assert self.content[page] == tokens[: (index + 1) * PAGE]


TestLending = Lending.TestCase
TestLending.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.lists(st.integers(0, 2), max_size=20), st.integers(1, 4), st.data())
def test_only_full_pages_have_digests_however_the_tokens_came(
    tokens: list[int], page: int, data: st.DataObject
) -> None:
    whole: list[bytes] = []
    extend_digests(whole, tokens, page)
    assert len(whole) == len(tokens) // page
    grown: list[bytes] = []
    extend_digests(grown, tokens[: data.draw(st.integers(0, len(tokens)))], page)
    extend_digests(grown, tokens, page)
    assert grown == whole
    salted: list[bytes] = []
    extend_digests(salted, tokens, page, b"salt")
    assert not set(salted) & set(whole)


def test_a_page_is_released_once_and_sealed_in_use_only() -> None:
    blocks = BlockManager(PAGES, PAGE)
    page = blocks.allocate()
    blocks.release([page])
    with pytest.raises(AssertionError, match="released twice"):
        blocks.release([page])
    with pytest.raises(AssertionError, match="not in use"):
        blocks.seal(page, b"digest")
