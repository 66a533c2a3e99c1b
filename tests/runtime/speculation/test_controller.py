"""How much is drafted: never what its own figures say is slower, and on a simulated clock hardly ever so."""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokc.runtime.sequence import SamplingParams
from tokc.runtime.sequence import Sequence as Tokens
from tokc.runtime.speculation.controller import LEAST_GAIN, MARGIN, Candidate, Setting, choose
from tokc.runtime.speculation.drafter import Computed, Draft, Guess
from tokc.runtime.speculation.speculation import Speculation
from tokc.runtime.speculation.tree import TokenTree

CHANCES = st.lists(st.floats(0.05, 0.99), min_size=0, max_size=4)
SECONDS = st.floats(1e-4, 1.0)


def sequence_of(prompt: int = 4, last_output: int = 1 << 20) -> Tokens:
    return Tokens([1] * prompt, SamplingParams(), seed=0, last_output=last_output)


def gains_of(chances: list[float]) -> list[float]:
    gains, gain = [], 1.0
    for chance in chances:
        gain *= chance
        gains.append(gain)
    return gains


def rate_of(setting: Setting, gains: Sequence[Sequence[float]], depths: Sequence[int]) -> float:
    made = setting.made + sum(sum(row[:depth]) for row, depth in zip(gains, depths, strict=True))
    drafting = sum(setting.draft_s(at, sum(depth > at for depth in depths)) for at in range(max(depths)))
    return made / (setting.step_s(setting.tokens + sum(depths)) + drafting + setting.spent_s)


@given(
    rows=st.lists(CHANCES, min_size=1, max_size=3),
    base=SECONDS,
    slope=SECONDS,
    draft=st.floats(0, 0.5),
    tokens=st.integers(0, 40),
    room=st.integers(0, 12),
)
@settings(max_examples=200, deadline=None)
def test_what_is_chosen_wins_by_its_own_figures(
    rows: list[list[float]], base: float, slope: float, draft: float, tokens: int, room: int
) -> None:
    drafts = [Draft(sequence_of(), len(row)) for row in rows]
    gains = [gains_of(row) for row in rows]
    setting = Setting(
        tokens + len(rows),
        len(rows),
        room,
        0.0,
        lambda count: base + slope * count,
        lambda _, count: draft * bool(count),
        lambda _: 1.0,
    )
    wanted = [
        Candidate(gain, draft, draft.root, call)
        for draft, row in zip(drafts, gains, strict=True)
        for call, gain in enumerate(row)
    ]
    choice = choose(setting, wanted)
    depths = [sum(one.draft is draft for one in choice.taken) for draft in drafts]
    assert sum(depths) <= room
    assert choice.plain_rate == pytest.approx(rate_of(setting, gains, [0] * len(rows)))
    assert choice.rate == pytest.approx(rate_of(setting, gains, depths))
    if any(depths):
        assert choice.rate > MARGIN * choice.plain_rate
    if draft == 0:  # then no set of tokens is better
        every = product(*(range(sum(gain >= LEAST_GAIN for gain in row) + 1) for row in gains))
        best = max(rate_of(setting, gains, one) for one in every if sum(one) <= room)
        assert choice.rate == pytest.approx(best) or best <= MARGIN * choice.plain_rate


class World:
    """A machine with a clock of its own, and a drafter whose tokens hold as often as it is told."""

    priors = (0.5,) * 8

    def __init__(
        self,
        step_s: Callable[[int], float],
        draft_s: Callable[[int], float],
        holds: Callable[[int, int], float],
        stride: int = 1,
        *,
        branches: bool = False,
    ) -> None:
        self.stride, self.branches = stride, branches
        self.step_s, self.draft_s, self.holds = step_s, draft_s, holds
        self.now_s, self.random, self.second = 0.0, Random(1), 0.0
        self.speculation = Speculation(self, most=6, trees=branches, clock=lambda: self.now_s)

    def due(self, sequence: Tokens) -> int | None:
        return 1

    def extend(self, drafts: Sequence[Draft]) -> int:
        computed = sum(len(draft.frontier) for draft in drafts)
        self.now_s += self.draft_s(computed)
        for draft in drafts:
            for node in draft.frontier:
                draft.follow(node, [Guess(which, 0.5 / 2**which) for which in range(1 + draft.width)])
        return computed

    def observe(self, computed: Sequence[Computed]) -> None:
        """See nothing."""

    def forget(self, sequence: Tokens) -> None:
        """Forget nothing."""

    def close(self) -> None:
        """Let go of nothing."""

    def drafts(self, sequences: Sequence[Tokens]) -> dict[Tokens, TokenTree]:
        return self.speculation.drafts(sequences, len(sequences), 256, lambda _, count: count)

    def tokens_of(self, index: int, tree: TokenTree | None) -> list[int]:
        """Return what a step makes: 0 where the first guess is right, 1 the second, else neither."""
        tokens: list[int] = []
        node = None
        while not tokens or node is not None:
            first = self.holds(index, len(tokens))
            at = self.random.random()
            tokens.append(0 if at < first else 1 if at < first + self.second else 9)
            node = None if tree is None else tree.child(node, tokens[-1])
        return tokens

    def tokens_per_s(self, batch: int, steps: int) -> float:
        sequences, made = [sequence_of() for _ in range(batch)], 0
        for _ in range(steps):
            drafts = self.drafts(sequences)
            count = batch + sum(map(len, drafts.values()))
            seconds = self.step_s(count) * self.random.uniform(0.95, 1.05)
            self.now_s += seconds
            self.speculation.timed(count, seconds)
            for index, sequence in enumerate(sequences):
                tokens = self.tokens_of(index, drafts.get(sequence))
                made += len(tokens)
                sequence.tokens += tokens
                self.speculation.learn(sequence, len(tokens))
        return made / self.now_s


STEPS = {
    "memory-bound": lambda count: 0.008 + 0.0008 * count,
    "compute-bound": lambda count: 0.001 + 0.004 * count,
    "in tiles": lambda count: 0.008 + 0.004 * -(-count // 4),
}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("draft_s", [0.0005, 0.006])
def test_it_is_hardly_ever_slower_than_without(step: str, batch: int, chance: float, draft_s: float) -> None:
    world = World(STEPS[step], lambda _: draft_s, lambda _, __: chance)
    plain = batch / STEPS[step](batch)
    assert world.tokens_per_s(batch, 800) > 0.98 * plain


@pytest.mark.parametrize("batch", [1, 4])
def test_it_is_nearly_as_fast_as_the_best_depth_where_it_pays(batch: int) -> None:
    step, chance, draft_s = STEPS["memory-bound"], 0.8, 0.0008
    world = World(step, lambda _: draft_s, lambda _, __: chance)
    best = max(
        batch
        * sum(chance**place for place in range(depth + 1))
        / (step(batch * (depth + 1)) + depth * draft_s)
        for depth in range(7)
    )
    assert best > 1.4 * batch / step(batch)
    assert world.tokens_per_s(batch, 800) > 0.9 * best


def test_sequences_of_one_batch_are_told_apart() -> None:
    world = World(STEPS["memory-bound"], lambda _: 0.0005, lambda index, _: 0.9 if index < 2 else 0.0)
    world.tokens_per_s(4, 300)
    sequences = list(world.speculation._trust)
    world.speculation._steps_without = 0
    factors = [trust.factor for trust in world.speculation._trust.values()]
    assert min(factors[:2]) > 0.9
    assert max(factors[2:]) < 0.7
    found = [world.drafts(sequences) for _ in range(2)]
    assert all(set(drafts) <= set(sequences[:2]) for drafts in found)
    assert any(found)


def test_what_became_worth_it_is_found_again() -> None:
    world = World(STEPS["memory-bound"], lambda _: 0.0008, lambda _, __: 0.0)
    world.tokens_per_s(1, 600)
    world.holds = lambda _, __: 0.9
    world.now_s = 0.0
    plain = 1 / STEPS["memory-bound"](1)
    assert world.tokens_per_s(1, 2000) > 1.3 * plain


@pytest.mark.parametrize(("first", "second"), [(0.45, 0.4), (0.8, 0.0)])
def test_a_tree_is_as_wide_as_what_holds(first: float, second: float) -> None:
    step, draft_s = STEPS["memory-bound"], 0.0004
    chain, tree = (
        World(step, lambda _: draft_s, lambda _, __: first, branches=branches) for branches in (False, True)
    )
    chain.second = tree.second = second
    rates = [world.tokens_per_s(1, 800) for world in (chain, tree)]
    assert rates[1] > (1.15 if second else 0.97) * rates[0]


@pytest.mark.parametrize("chance", [0.05, 0.15])
def test_slow_first_steps_do_not_make_drafts_look_cheap(chance: float) -> None:
    steps = iter(range(1_000_000))
    world = World(
        lambda count: (0.0088 + 0.0012 * count) * (1.6 if next(steps) < 4 else 1.0),
        lambda _: 0.0006,
        lambda _, __: chance,
    )
    assert world.tokens_per_s(1, 1000) > 0.98 * 1000 / (0.01 * 1000 + 4 * 0.006)
