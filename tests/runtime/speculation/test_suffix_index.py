"""The index finds the longest suffix that occurred before, at every length of the text."""

from hypothesis import given
from hypothesis import strategies as st

from tokc.runtime.speculation.suffix_index import SuffixAutomaton

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=60)


def longest_repeated_suffix(text: list[int]) -> int:
    for length in range(len(text) - 1, 0, -1):
        if any(text[at : at + length] == text[-length:] for at in range(len(text) - length)):
            return length
    return 0


@given(TEXTS)
def test_the_automaton_finds_the_longest_suffix_that_was_there_before(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for at, token in enumerate(text):
        automaton.extend(token)
        so_far = text[: at + 1]
        length, end = automaton.match_length, automaton.match_end
        assert length == longest_repeated_suffix(so_far)
        if length:
            assert end <= at
            assert so_far[end - length : end] == so_far[-length:]
