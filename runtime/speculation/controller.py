"""How much to draft for each sequence of a step, so that steps make more tokens a second."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from typing import NamedTuple

from tokc.runtime.speculation.drafter import Draft, Node

# A draft must be expected to make a step so much better; what is measured errs.
MARGIN = 1.02
LEAST_GAIN = 0.02


class Setting(NamedTuple):
    """The step that drafts are added to.

    It computes `tokens` and makes `made` of them without drafts, `room` are left; `spent_s` went into drafts.
    `step_s` are the seconds of a step by its tokens; `draft_s` those of the call so many calls from now, by
    what it computes (call, tokens); `due` what a draft computes for its root.
    """

    tokens: int
    made: int
    room: int
    spent_s: float
    step_s: Callable[[float], float]
    draft_s: Callable[[int, float], float]
    due: Callable[[Draft], float]


class Candidate(NamedTuple):
    """A token that may be verified: how likely it is made, and its node.

    One that is not drafted yet has the open node that it follows, and is drafted `call` calls from now.
    """

    gain: float
    draft: Draft
    node: Node
    call: int | None = None


class Choice(NamedTuple):
    """The candidates that make most tokens a second, parents first; the rate with them and without any."""

    taken: Items[Candidate]
    rate: float
    plain_rate: float

    @property
    def verified(self) -> dict[Draft, list[Node]]:
        """Return the nodes of each draft to verify."""
        return _by_draft(one for one in self.taken if one.call is None)

    @property
    def followed(self) -> dict[Draft, list[Node]]:
        """Return the nodes of each draft to follow in the next call."""
        return _by_draft(one for one in self.taken if one.call == 0)


def choose(setting: Setting, candidates: Items[Candidate]) -> Choice:
    """Return the tokens that make most tokens a second.

    They are added in the order of their gains, and the best of these sets is taken: of a tree the likeliest
    nodes, as EAGLE-2 ranks them, and as many as the measured times say. No token is more likely than those
    before it, so that it comes after them. Nothing is drafted that does not win by MARGIN; of what was
    drafted already, what is worth verifying.
    Source: Li et al. 2024, EAGLE-2, arXiv:2406.16858, sec. 4, whose numbers of nodes are constants.
    """
    plain = best = setting.made / (setting.step_s(setting.tokens) + setting.spent_s)
    if not setting.spent_s:
        best *= MARGIN
    seconds, expected, taken = setting.spent_s, float(setting.made), 0
    order = sorted((one for one in candidates if one.gain >= LEAST_GAIN), key=_rank)
    computed: dict[int, float] = {}
    for count, (gain, draft, node, call) in enumerate(order[: max(setting.room, 0)], 1):
        expected += gain
        if call is not None:
            before = computed.get(call, 0.0)
            computed[call] = after = before + (setting.due(draft) if node.place < 0 and not call else 1.0)
            seconds += setting.draft_s(call, after) - setting.draft_s(call, before)
        rate = expected / (setting.step_s(setting.tokens + count) + seconds)
        if rate > best:
            best, taken = rate, count
    return Choice(order[:taken], best if taken else plain, plain)


def _by_draft(candidates: Iterable[Candidate]) -> dict[Draft, list[Node]]:
    nodes: dict[Draft, list[Node]] = {}
    for one in candidates:
        nodes.setdefault(one.draft, []).append(one.node)
    return nodes


def _rank(one: Candidate) -> tuple[float, int, int]:
    """Return what orders candidates: the likeliest first, and of equals the one that is drafted sooner."""
    return -one.gain, one.node.place + (0 if one.call is None else one.call + 1), one.node.which
