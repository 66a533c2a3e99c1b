"""Drafts what was said before: prompt lookup, without weights."""

from collections.abc import Iterable
from collections.abc import Sequence as Items

from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.answers import KEY_TOKENS, LONGEST_MATCH, Answers
from tokc.runtime.speculation.drafter import Computed, Draft, Guess
from tokc.runtime.speculation.suffix_index import SuffixAutomaton

MIN_MATCH = 2


class NgramDrafter:
    """Drafts what followed the longest earlier occurrence of a sequence's end.

    It looks into the sequence's own prompt and answer and, with `answers`, into those of requests that ended.
    Its confidence is the length of the match, of which LONGEST_MATCH is all.
    """

    stride, branches = 0, False
    priors = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.8)

    def __init__(self, answers: Answers | None = None) -> None:
        """Start with no text."""
        self._answers = answers
        self._indexes: dict[Sequence, SuffixAutomaton] = {}

    def due(self, sequence: Sequence) -> int | None:  # noqa: ARG002 - it looks up, whatever the sequence is
        """Return 0: nothing is computed."""
        return 0

    def extend(self, drafts: Items[Draft]) -> int:
        """Follow each draft by all that is found and close it."""
        for draft in drafts:
            found, match = self._longest(draft.sequence, draft.most)
            node = draft.root
            for place, token in enumerate(found):
                draft.follow(node, [Guess(token, min(match + place, LONGEST_MATCH) / LONGEST_MATCH)])
                node = node.children[0]
            draft.close()
        return 0

    def observe(self, computed: Iterable[Computed]) -> None:
        """See nothing that the text does not say."""

    def forget(self, sequence: Sequence) -> None:
        """Forget the index of a sequence and keep its answer, if others may find it."""
        self._indexes.pop(sequence, None)
        if self._answers is not None and sequence.output_length:
            begin = max(sequence.prompt_length - KEY_TOKENS, 0)
            self._answers.add(sequence.cache_salt, sequence.tokens[begin:])

    def close(self) -> None:
        """Let go of nothing."""

    def _longest(self, sequence: Sequence, most: int) -> tuple[list[int], int]:
        index = self._indexes.setdefault(sequence, SuffixAutomaton())
        found, match = continuation(index, sequence.tokens, most)
        if self._answers is not None:
            other, other_match = self._answers.find(sequence.cache_salt, sequence.tokens, most)
            if other_match > match:
                return other, other_match
        return found, match


def continuation(index: SuffixAutomaton, tokens: Items[int], most: int) -> tuple[list[int], int]:
    """Return what followed the longest earlier occurrence of the end of `tokens`, and its length.

    `tokens` begin with those of the last call, which `index` holds.
    """
    for token in tokens[index.size :]:
        index.extend(token)
    if index.match_length < MIN_MATCH:
        return [], 0
    found = list(tokens[index.match_end : index.match_end + most])
    period = len(tokens) - index.match_end
    while found and len(found) < most:  # the text repeats itself: go on as it did
        found.append(found[len(found) - period])
    return found, index.match_length
