"""Drafts for the sequences of a step, and what is learned from how they went."""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from tokc.runtime.executors.base import TREE_NODES
from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.acceptance import BUCKETS, HIGHEST, Acceptance, Trust
from tokc.runtime.speculation.config import MAX_TOKENS
from tokc.runtime.speculation.controller import LEAST_GAIN, Candidate, Setting, choose
from tokc.runtime.speculation.drafter import Computed, Draft, Drafter, Node, tree_of
from tokc.runtime.speculation.step_time import StepTime
from tokc.runtime.speculation.tree import TokenTree

# What a call of a drafter takes before one was timed, as a share of a step.
DRAFT_SHARE = 0.15
# The first drafts are made to be timed, whatever is expected of them; and one after so many steps without
# any, for time and acceptance may have changed.
FIRST_PROBES, PROBE_STEPS = 3, 256
# A step without drafts costs nothing that would not be spent without speculation. So many come first at each
# number of tokens, and then one after so many steps with drafts, twice as many each time up to the last: its
# time is what drafts are weighed against, and the first steps of all are slow.
PLAIN_STEPS, PLAIN_AFTER, PLAIN_EVERY = 3, 1, 64
# A draft that must first catch up with a text pays for it over so many of its tokens at most.
AMORTIZED_TOKENS = 64

# To weigh drafts takes time of its own: 2 % of a step of a small model, and the more the more sequences there
# are. After a look where drafts were lately worth less than looks cost, steps go without one: one, then twice
# as many each time, up to so many. Where a look costs a lookup only, so few sequences always have one.
AWAKE_SEQUENCES, MOST_REST = 3, 16
WORTH_GAIN = 0.1

# Where steps may hold trees, so many tokens beside the first at each place. None is likelier than one half,
# and until it was measured each is taken to hold as often as its drafter says.
OTHERS = 2
OTHERS_PRIORS = tuple((bucket + 0.5) / BUCKETS / 2 for bucket in range(BUCKETS))

Grow = Callable[[Sequence, int], int]


class Rest:
    """Counts the steps that go without a look at drafts; fewer sequences end it."""

    def __init__(self) -> None:
        """Be awake, and know of no look."""
        self.worth_s = 0.0
        self._left = self._length = self._sequences = 0

    def goes_on(self, sequences: int) -> bool:
        """Say whether a step of so many sequences goes without a look, and count it."""
        if not self._left or sequences < self._sequences:
            return False
        self._left -= 1
        return True

    def note(self, sequences: int, gain_s: float, *, awake: bool = False) -> None:
        """Note a look by the seconds that it should save less those it took; rest, unless `awake`."""
        self.worth_s += (gain_s - self.worth_s) * WORTH_GAIN
        rests = self.worth_s < 0 and not awake
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
        self._width, self._branches = OTHERS if trees else 0, trees and drafter.branches
        self.drafter, self.most = drafter, most
        self.time = StepTime()
        self.draft_time = StepTime(share=DRAFT_SHARE, of=self.time)
        self.acceptance = Acceptance(drafter.priors)
        self.acceptance_of_others = Acceptance(OTHERS_PRIORS)
        self._clock = clock
        self._trust: dict[Sequence, Trust] = {}
        self._verified: dict[Sequence, tuple[Draft, set[Node]]] = {}
        self._steps = self._steps_without = self._steps_with = self._calls = 0
        self._plain_after, self._drafted_any = PLAIN_AFTER, False
        self._rest = Rest()

    def drafts(
        self, sequences: Items[Sequence], tokens: int, room: int, grow: Grow
    ) -> dict[Sequence, TokenTree]:
        """Return drafts for sequences that compute their last token in a step of `tokens`.

        Together they hold at most `room` tokens; `grow` makes place in the cache for so many tokens behind a
        sequence's own, and returns for how many there is.
        """
        self._verified.clear()
        self._drafted_any = False
        self._steps += 1
        if self.paused:
            return {}
        if self._rest.goes_on(len(sequences)):
            self._steps_without += 1
            return {}
        began_s = self._clock()
        begun = [draft for sequence in sequences for draft in self._begun(sequence, room)]
        if not begun or (tokens == len(sequences) and self._measures_plain(tokens)):
            if self._steps_with >= self._plain_after:
                self._plain_after = min(2 * self._plain_after, PLAIN_EVERY)
            self._steps_with = 0
            return {}
        lookup = self.drafter.stride == 0
        if lookup:
            self._extend(begun)
        self._steps_with += 1
        setting = Setting(tokens, len(sequences), room, 0.0, self.time.seconds, self._draft_s, self._due)
        chosen = self._drafted(begun, setting, grow)
        gain_s = self._saved_s(setting, chosen) - (self._clock() - began_s)
        self._rest.note(len(sequences), gain_s, awake=lookup and len(sequences) <= AWAKE_SEQUENCES)
        self._drafted_any = bool(chosen)
        self._verified |= {draft.sequence: (draft, set(nodes)) for draft, nodes in chosen.items()}
        return {draft.sequence: tree_of(nodes) for draft, nodes in chosen.items()}

    def learn(self, sequence: Sequence, made: int) -> None:
        """Note that a step made the last `made` tokens of a sequence, by a draft or without any."""
        if sequence not in self._verified:
            return
        trust = self._trust[sequence]
        draft, verified = self._verified.pop(sequence)
        node: Node | None = draft.root
        for token in sequence.tokens[-made:]:
            followers = [] if node is None else node.children
            node = None
            for child in followers:
                held = child.token == token
                if child in verified:
                    self._judge(trust, child, held=held)
                    node = child if held else node

    def _judge(self, trust: Trust, node: Node, *, held: bool) -> None:
        """Note whether a node held behind those that did."""
        if node.which:
            self.acceptance_of_others.learn(node.place, 2 * node.confidence, held=held)
            return
        trust.learn(node.chance, held=held)
        self.acceptance.learn(node.place, node.confidence, held=held)

    def timed(self, tokens: int, seconds: float) -> None:
        """Note what a step of so many tokens took."""
        self.time.learn(tokens, seconds, aside=self._drafted_any)

    def observe(self, computed: Iterable[Computed]) -> None:
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
        return self.time.observations(tokens) < PLAIN_STEPS or self._steps_with >= self._plain_after

    def _begun(self, sequence: Sequence, room: int) -> Items[Draft]:
        """Return a draft of a sequence, if it can have any."""
        most = min(self.most, sequence.last_output - sequence.output_length - 1, room)
        if most <= 0 or self.drafter.due(sequence) is None:
            return ()
        self._trust.setdefault(sequence, Trust(self._steps)).relax(self._steps)
        return (Draft(sequence, most, self._width, self._branches),)

    def _drafted(self, drafts: Items[Draft], setting: Setting, grow: Grow) -> dict[Draft, list[Node]]:
        """Draft as long as a further call pays; returns the nodes of each draft to verify, parents first."""
        while True:
            began_s = self._clock()
            choice = choose(setting, [one for draft in drafts for one in self._candidates(draft)])
            verified, followed = choice.verified, choice.followed
            going = [one for one in followed if _grown(one, followed[one], len(verified.get(one, ())), grow)]
            if not (going or verified) and self._probes(drafts):
                return self._probe(min(drafts, key=self._due), grow)
            if not going:
                break
            setting = setting._replace(spent_s=setting.spent_s + self._extend(going, began_s))
        found = {}
        for draft, nodes in verified.items():
            if kept := nodes[: min(grow(draft.sequence, len(nodes)), TREE_NODES)]:
                found[draft] = kept
        self._steps_without = 0 if found else self._steps_without + 1
        return found

    @staticmethod
    def _saved_s(setting: Setting, chosen: dict[Draft, list[Node]]) -> float:
        """Return the seconds that other steps are expected to be saved, less what this one takes longer."""
        nodes = [node for own in chosen.values() for node in own]
        plain_s = setting.step_s(setting.tokens)
        longer_s = setting.step_s(setting.tokens + len(nodes)) - plain_s
        return plain_s * sum(node.gain for node in nodes) / setting.made - longer_s

    def _probe(self, draft: Draft, grow: Grow) -> dict[Draft, list[Node]]:
        """Draft one token although it does not seem to pay."""
        self._steps_without += 1
        if not grow(draft.sequence, 1):
            return {}
        draft.frontier = [draft.root]
        self._extend([draft])
        if not draft.nodes:
            return {}
        self._steps_without = 0
        return {draft: draft.nodes[:1]}

    def _probes(self, drafts: Items[Draft]) -> bool:
        """Say whether to draft although it does not seem to pay, so that figures do not grow old."""
        if not self.drafter.stride or any(draft.open != [draft.root] for draft in drafts):
            return False
        return self._calls < FIRST_PROBES or self._steps_without >= PROBE_STEPS

    def _extend(self, drafts: Items[Draft], began_s: float | None = None) -> float:
        """Draft further; returns the seconds that it took, with those since `began_s` that chose what."""
        began_s, known = began_s or self._clock(), [len(draft.nodes) for draft in drafts]
        computed = self.drafter.extend(drafts)
        for draft, first in zip(drafts, known, strict=True):
            assert not set(draft.frontier) & set(draft.open), "a drafter follows the frontier or closes it"
            factor = self._trust[draft.sequence].factor
            for node in draft.nodes[first:]:
                self._rate(node, factor)
        seconds = self._clock() - began_s
        self._calls += 1
        if computed:
            self.draft_time.learn(computed, seconds)
        return seconds

    def _rate(self, node: Node, factor: float) -> None:
        """Say how likely a node holds and is made."""
        assert node.parent is not None, "only the root has none"
        if node.which:
            node.chance = self.acceptance_of_others.chance(node.place, 2 * node.confidence)
            factor = 1.0
        else:
            node.chance = self.acceptance.chance(node.place, node.confidence)
            self.acceptance.drafted(node.place, node.chance)
        node.gain = node.parent.gain * min(node.chance * factor, HIGHEST)

    def _candidates(self, draft: Draft) -> list[Candidate]:
        """Return the nodes of a draft, and what is to be expected of following the open ones."""
        found = [Candidate(node.gain, draft, node) for node in draft.nodes]
        factor = self._trust[draft.sequence].factor
        for node in draft.open:
            gain = node.gain
            for call, place in enumerate(range(node.place + 1, draft.most)):
                gain *= min(self.acceptance.expected(place) * factor, HIGHEST)
                if gain < LEAST_GAIN:
                    break
                found.append(Candidate(gain, draft, node, call))
        return found

    def _draft_s(self, call: int, tokens: float) -> float:
        """Return the seconds of a call that computes so many tokens; one drafts `stride` places."""
        stride = self.drafter.stride
        return 0.0 if not stride or call % stride else self.draft_time.seconds(tokens)

    def _due(self, draft: Draft) -> float:
        """Return what following the root computes; to catch up with a text is shared by tokens to come."""
        sequence = draft.sequence
        due, usual = self.drafter.due(sequence) or 0, self.most + 1
        left = max(min(sequence.last_output - sequence.output_length, AMORTIZED_TOKENS), 1)
        return due if due <= usual else usual + (due - usual) / left


def _grown(draft: Draft, wanted: Items[Node], verified: int, grow: Grow) -> bool:
    """Let the next call follow `wanted` nodes besides those to verify, as far as there is place."""
    used = len(draft.entries)
    place = min(grow(draft.sequence, max(verified, used) + len(wanted)), TREE_NODES)
    draft.frontier = list(wanted[: max(place - used, 0)])
    return bool(draft.frontier)
