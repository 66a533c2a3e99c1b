"""Drafts for the sequences of a step, and what is learned from how they went."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from tokc.runtime.executors.base import TREE_NODES
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.acceptance import BUCKETS, HIGHEST, Acceptance, Trust
from tokc.runtime.speculation.config import MAX_TOKENS
from tokc.runtime.speculation.controller import Gains, Other, Setting, choose
from tokc.runtime.speculation.drafter import Branch, Computed, Drafter
from tokc.runtime.speculation.step_time import StepTime
from tokc.runtime.speculation.tree import TokenTree

# What a call of a drafter takes before one was timed, as a share of a step.
DRAFT_SHARE = 0.15
# The first drafts are made to be timed, whatever is expected of them; and one after so many steps without
# any, for time and acceptance may have changed.
FIRST_PROBES, PROBE_STEPS = 3, 256
# A step without drafts costs nothing that would not be spent without speculation. So many come first at each
# number of tokens, and one after so many steps with drafts, for its time is what drafts are weighed against.
PLAIN_STEPS, PLAIN_EVERY = 3, 64
# A draft that must first catch up with a text pays for it over so many of its tokens at most.
AMORTIZED_TOKENS = 64

# To weigh drafts takes time of its own, and the more the more sequences there are. From so many on, steps
# after one for which none paid go without a look: one, then twice as many each time, up to so many.
RESTING_SEQUENCES, MOST_REST = 4, 8

# Where steps may hold trees, so many tokens beside the one that is drafted further. None is likelier than one
# half, and until it was measured each is taken to hold as often as its drafter says.
OTHERS = 2
OTHERS_PRIORS = tuple((bucket + 0.5) / BUCKETS / 2 for bucket in range(BUCKETS))

Grow = Callable[[Sequence, int], int]


class Rest:
    """Counts the steps that go without a look at drafts; fewer sequences end it."""

    def __init__(self) -> None:
        """Be awake."""
        self._left = self._length = self._sequences = 0

    def goes_on(self, sequences: int) -> bool:
        """Say whether a step of so many sequences goes without a look, and count it."""
        if not self._left or sequences < self._sequences:
            return False
        self._left -= 1
        return True

    def note(self, sequences: int, *, paid: bool) -> None:
        """Note whether a step for which drafts were weighed has any."""
        rests = not paid and sequences >= RESTING_SEQUENCES
        self._length = min(2 * self._length or 1, MOST_REST) if rests else 0
        self._left, self._sequences = self._length, sequences


class Speculation:
    """Drafts with one drafter, as deep for each sequence as pays at its own rate of acceptance."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        most: int = MAX_TOKENS,
        trees: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Draft at most `most` tokens in a row for a sequence, none while `paused`.

        With `trees` a step may verify several tokens at one place.
        """
        self.paused = False
        self._width = OTHERS if trees else 0
        self.drafter, self.most = drafter, most
        self.time = StepTime()
        self.draft_time = StepTime(share=DRAFT_SHARE, of=self.time)
        self.acceptance = Acceptance(drafter.priors)
        self.acceptance_of_others = Acceptance(OTHERS_PRIORS)
        self._clock = clock
        self._trust: dict[Sequence, Trust] = {}
        self._open: dict[Sequence, tuple[Branch, int, Items[Other]]] = {}
        self._steps_without = self._steps_with = self._calls = 0
        self._rest = Rest()

    def drafts(
        self, sequences: Items[Sequence], tokens: int, room: int, grow: Grow
    ) -> dict[Sequence, TokenTree]:
        """Return drafts for sequences that compute their last token in a step of `tokens`.

        Together they hold at most `room` tokens; `grow` makes place in the cache for so many tokens behind a
        sequence's own, and returns for how many there is.
        """
        self._open.clear()
        if self.paused:
            return {}
        if self._rest.goes_on(len(sequences)):
            self._steps_without += 1
            return {}
        branches = [branch for sequence in sequences for branch in self._branch(sequence, room)]
        if not branches or (tokens == len(sequences) and self._measures_plain(tokens)):
            self._steps_with = 0
            return {}
        if self.drafter.stride == 0:
            self._extend(branches)
        self._steps_with += 1
        made = len(sequences)
        setting = Setting(tokens, made, room, 0.0, self.time.seconds, self._draft_s, self._due)
        drafted = self._drafted(branches, setting, grow)
        self._rest.note(len(sequences), paid=bool(drafted))
        self._open = {branch.sequence: (branch, depth, others) for branch, depth, others in drafted}
        return {branch.sequence: branch.tree(depth, others) for branch, depth, others in drafted}

    def learn(self, sequence: Sequence, made: int) -> None:
        """Note that a step made the last `made` tokens of a sequence, by a draft or without any."""
        trust = self._trust.get(sequence)
        if trust is None:
            return
        if sequence not in self._open:
            trust.relax()
            return
        branch, depth, others = self._open.pop(sequence)
        for place, token in enumerate(sequence.tokens[-made:]):
            for at, which in others:
                if at == place:
                    other = branch.others[place][which]
                    self.acceptance_of_others.learn(place, 2 * other.confidence, held=other.token == token)
            if place >= depth:
                break
            held = branch.tokens[place] == token
            trust.learn(branch.chances[place], held=held)
            self.acceptance.learn(place, branch.confidences[place], held=held)
            if not held:
                break

    def timed(self, tokens: int, seconds: float) -> None:
        """Note what a step of so many tokens took."""
        self.time.learn(tokens, seconds)

    def observe(self, computed: Items[Computed]) -> None:
        """Let the drafter see what a step computed."""
        if not self.paused:
            self.drafter.observe(computed)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was taken out."""
        self._trust.pop(sequence, None)
        self.drafter.forget(sequence)

    def close(self) -> None:
        """Let go of what only drafts use."""
        self.drafter.close()

    def _measures_plain(self, tokens: int) -> bool:
        """Say whether this step is to be timed without drafts."""
        return self.time.observations(tokens) < PLAIN_STEPS or self._steps_with >= PLAIN_EVERY

    def _branch(self, sequence: Sequence, room: int) -> Items[Branch]:
        most = min(self.most, sequence.last_output - sequence.output_length - 1, room)
        if most <= 0 or self.drafter.due(sequence) is None:
            return ()
        self._trust.setdefault(sequence, Trust())
        return (Branch(sequence, most, self._width),)

    def _drafted(
        self, branches: Items[Branch], setting: Setting, grow: Grow
    ) -> list[tuple[Branch, int, list[Other]]]:
        """Draft as long as a further token pays; returns how deep to verify each branch, and its others."""
        while True:
            choice = choose(setting, [self._gains(branch) for branch in branches])
            depths = choice.depths
            probe = not (depths or choice.others) and self._probes(branches)
            if probe:
                depths = {min(branches, key=self._due): 1}
            depths = {branch: grow(branch.sequence, depth) for branch, depth in depths.items()}
            going = [branch for branch, depth in depths.items() if depth > len(branch.tokens)]
            if going:
                setting = setting._replace(spent_s=setting.spent_s + self._extend(going))
            if probe or not going:
                found = [self._cut(branch, depths, choice.others, grow) for branch in branches]
                found = [one for one in found if one[1] or one[2]]
                self._steps_without = 0 if found else self._steps_without + 1
                return found

    @staticmethod
    def _cut(
        branch: Branch, depths: dict[Branch, int], others: dict[Branch, list[Other]], grow: Grow
    ) -> tuple[Branch, int, list[Other]]:
        """Return depth and others of a branch, as far as there is place for them."""
        depth, wanted = min(depths.get(branch, 0), len(branch.tokens)), others.get(branch, [])
        kept = [one for one in wanted if one[0] <= depth][: TREE_NODES - depth]
        if kept:
            kept = kept[: max(grow(branch.sequence, depth + len(kept)) - depth, 0)]
        return branch, depth, kept

    def _probes(self, branches: Items[Branch]) -> bool:
        """Say whether to draft although it does not seem to pay, so that figures do not grow old."""
        if not self.drafter.stride or any(branch.tokens for branch in branches):
            return False
        return self._calls < FIRST_PROBES or self._steps_without >= PROBE_STEPS

    def _extend(self, branches: Items[Branch]) -> float:
        """Draft further; returns the seconds that it took."""
        began_s = self._clock()
        computed = self.drafter.extend(branches)
        for branch in branches:
            for place in range(len(branch.chances), len(branch.tokens)):
                chance = self.acceptance.chance(place, branch.confidences[place])
                branch.chances.append(chance)
                self.acceptance.drafted(place, chance)
        seconds = self._clock() - began_s
        self._calls += 1
        if computed:
            self.draft_time.learn(computed, seconds)
        return seconds

    def _gains(self, branch: Branch) -> Gains:
        """Return how likely the token at each place is made, drafted already or not, and the others."""
        factor, gain, gains = self._trust[branch.sequence].factor, 1.0, []
        others: list[tuple[float, Other]] = []
        for place in range(branch.most):
            drafted = place < len(branch.chances)
            if drafted:
                for which, other in enumerate(branch.others[place]):
                    chance = self.acceptance_of_others.chance(place, 2 * other.confidence)
                    others.append((gain * min(chance, HIGHEST), (place, which)))
            chance = branch.chances[place] if drafted else self.acceptance.expected(place)
            gain *= min(chance * factor, HIGHEST)
            gains.append(gain)
        return Gains(branch, gains, others)

    def _draft_s(self, place: int, tokens: float) -> float:
        """Return the seconds of drafting the tokens at a place; a call drafts `stride` of them."""
        stride = self.drafter.stride
        return 0.0 if not stride or place % stride else self.draft_time.seconds(tokens)

    def _due(self, branch: Branch) -> float:
        sequence = branch.sequence
        due, usual = self.drafter.due(sequence) or 0, self.most + 1
        left = max(min(sequence.last_output - sequence.output_length, AMORTIZED_TOKENS), 1)
        return due if due <= usual else usual + (due - usual) / left
