"""How much to draft for each sequence of a step, so that steps make more tokens a second."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple

from tokc.runtime.speculation.drafter import Branch

Other = tuple[int, int]  # a place of a draft, and which of the others there

# A draft must be expected to make a step so much better; what is measured errs.
MARGIN = 1.02
LEAST_GAIN = 0.02


class Setting(NamedTuple):
    """The step that drafts are added to.

    It computes `tokens` and makes `made` of them without drafts, `room` are left; `spent_s` went into drafts.
    `step_s` are the seconds of a step by its tokens; `draft_s` those of drafting the tokens at a place of all
    branches (place, tokens computed); `due` what a branch computes for its first place.
    """

    tokens: int
    made: int
    room: int
    spent_s: float
    step_s: Callable[[float], float]
    draft_s: Callable[[int, float], float]
    due: Callable[[Branch], float]


class Gains(NamedTuple):
    """How likely tokens of a branch are made: those at each place, drafted or not, which fall, and others."""

    branch: Branch
    places: Items[float]
    others: Items[tuple[float, Other]] = ()


class Choice(NamedTuple):
    """The depth of each branch, its others, and tokens a second with them and without any."""

    depths: dict[Branch, int]
    others: dict[Branch, list[Other]]
    rate: float
    plain_rate: float


def choose(setting: Setting, gains: Items[Gains]) -> Choice:
    """Return the tokens that make most tokens a second.

    They are added in the order of their gains, and the best of these sets is taken; no token is more likely
    than those before it, so that it comes after them. Nothing is drafted that does not win by MARGIN; of what
    was drafted already, what is worth verifying.
    """
    plain = best = setting.made / (setting.step_s(setting.tokens) + setting.spent_s)
    if not setting.spent_s:
        best *= MARGIN
    seconds, expected, taken = setting.spent_s, float(setting.made), 0
    order = _in_order(gains)
    rows: dict[int, float] = {}
    for count, (gain, place, which, branch) in enumerate(order[: max(setting.room, 0)], 1):
        expected += gain
        if which < 0 and place >= len(branch.tokens):
            before = rows.get(place, 0.0)
            rows[place] = after = before + (1.0 if place else setting.due(branch))
            seconds += setting.draft_s(place, after) - setting.draft_s(place, before)
        rate = expected / (setting.step_s(setting.tokens + count) + seconds)
        if rate > best:
            best, taken = rate, count
    depths: dict[Branch, int] = {}
    others: dict[Branch, list[Other]] = {}
    for _, place, which, branch in order[:taken]:
        if which < 0:
            depths[branch] = depths.get(branch, 0) + 1
        else:
            others.setdefault(branch, []).append((place, which))
    return Choice(depths, others, best if taken else plain, plain)


def _in_order(gains: Items[Gains]) -> list[tuple[float, int, int, Branch]]:
    """Return (gain, place, which, branch), -1 for the token that is followed further; the likeliest first."""
    found = []
    for branch, places, others in gains:
        found += [(gain, place, -1, branch) for place, gain in enumerate(places) if gain >= LEAST_GAIN]
        found += [(gain, place, which, branch) for gain, (place, which) in others if gain >= LEAST_GAIN]
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return found
