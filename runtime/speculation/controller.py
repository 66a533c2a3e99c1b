"""How much to draft for each sequence of a step, so that steps make more tokens a second."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple

from tokc.runtime.speculation.drafter import Branch

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


class Choice(NamedTuple):
    """The depth of each branch, and tokens a second with it and without any."""

    depths: dict[Branch, int]
    rate: float
    plain_rate: float


def choose(setting: Setting, gains: Items[tuple[Branch, Items[float]]]) -> Choice:
    """Return the depths that make most tokens a second.

    `gains` has for each branch the probability that its token at each place is made, so far drafted or not;
    these fall. Tokens are added in the order of their gains, and the best of these sets is taken. Nothing is
    drafted that does not win by MARGIN; of what was drafted already, what is worth verifying.
    """
    plain = best = setting.made / (setting.step_s(setting.tokens) + setting.spent_s)
    if not setting.spent_s:
        best *= MARGIN
    seconds, expected, taken = setting.spent_s, float(setting.made), 0
    order = _in_order(gains)
    rows: dict[int, float] = {}
    for count, (gain, place, branch) in enumerate(order[: max(setting.room, 0)], 1):
        expected += gain
        if place >= len(branch.tokens):
            before = rows.get(place, 0.0)
            rows[place] = after = before + (1.0 if place else setting.due(branch))
            seconds += setting.draft_s(place, after) - setting.draft_s(place, before)
        rate = expected / (setting.step_s(setting.tokens + count) + seconds)
        if rate > best:
            best, taken = rate, count
    depths: dict[Branch, int] = {}
    for _, _, branch in order[:taken]:
        depths[branch] = depths.get(branch, 0) + 1
    return Choice(depths, best if taken else plain, plain)


def _in_order(gains: Items[tuple[Branch, Items[float]]]) -> list[tuple[float, int, Branch]]:
    found = [
        (gain, place, branch) for branch, row in gains for place, gain in enumerate(row) if gain >= LEAST_GAIN
    ]
    found.sort(key=lambda one: (-one[0], one[1]))
    return found
