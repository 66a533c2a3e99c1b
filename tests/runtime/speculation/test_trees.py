"""Several drafted tokens at one place: answers stay the same, and a side branch that held is moved."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.hash_model import HashModel
from tests.runtime.speculation.drafting import Arbitrary, Eager, answers_of, engine_of
from tests.runtime.speculation.test_draft_model import PROMPTS
from tests.runtime.speculation.tree_model import TreeModel
from tokc.runtime.sequence import SamplingParams, Sequence
from tokc.runtime.speculation.controller import Gains, Setting, choose
from tokc.runtime.speculation.draft_model import DraftModelDrafter
from tokc.runtime.speculation.drafter import Branch, Guess
from tokc.runtime.speculation.speculation import Speculation


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8}])
@given(
    prompts=PROMPTS,
    budget=st.integers(4, 16),
    pages=st.integers(10, 40),
    eager=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_whatever_tree_is_drafted_answers_are_the_same(
    params: dict[str, Any], prompts: list[list[int]], budget: int, pages: int, *, eager: bool, seed: int
) -> None:
    options = {"max_tokens": 14, **params}
    plain = answers_of(engine_of(HashModel(num_pages=pages)), prompts, **options)
    known = {tuple(prompt): one.token_ids for prompt, one in zip(prompts, plain, strict=True)}
    kind = Eager if eager else Speculation
    speculation = kind(Arbitrary(known, seed=seed), most=4, trees=True)
    engine = engine_of(TreeModel(num_pages=pages), speculation, token_budget=budget)
    for _ in range(2):
        drafted = answers_of(engine, prompts, **options)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


def drafted_by(most: int, *, trees: bool) -> tuple[TreeModel, Any]:
    """Draft by the model itself at another temperature, so that the others are often right."""
    model = TreeModel(memory=1, num_pages=64, max_seqs=16)
    drafter = DraftModelDrafter(HashModel(memory=1, num_pages=64, max_seqs=16), vocab_size=model.vocab_size)
    engine = engine_of(model, Eager(Second(drafter), most=most, trees=trees))
    answers_of(engine, [b"a prompt"], max_tokens=50, ignore_eos=True)
    return model, engine.counters


class Second:
    """Drafts what another drafter holds to be second, so that what is right is among the others."""

    def __init__(self, drafter: DraftModelDrafter) -> None:
        self.drafter, self.stride, self.priors = drafter, 1, drafter.priors
        self.due, self.observe = drafter.due, drafter.observe
        self.forget, self.close = drafter.forget, drafter.close

    def extend(self, branches: list[Branch]) -> int:
        known = [branch for branch in branches if branch.tokens]
        for branch in known:
            branch.close()
        computed = self.drafter.extend([branch for branch in branches if not branch.tokens])
        for branch in branches:
            if branch not in known and branch.tokens and branch.others[0]:
                best = Guess(branch.tokens[0], branch.confidences[0])
                branch.tokens[0], branch.confidences[0] = branch.others[0][0]
                branch.others[0][0] = best
        return computed


def test_what_is_right_among_the_others_is_kept_and_moved() -> None:
    model, counters = drafted_by(1, trees=True)
    assert counters.drafts.accepted_at == counters.drafts.verified_at
    assert model.moved == counters.drafts.accepted > 20
    assert counters.drafts.verified == 3 * counters.drafts.drafts
    assert counters.steps < 30


def test_no_tree_is_made_where_steps_hold_none() -> None:
    model, counters = drafted_by(1, trees=False)
    assert all(batch.entries is None for batch in model.steps)
    assert counters.drafts.verified == counters.drafts.drafts


def test_others_are_verified_as_far_as_they_are_worth_it() -> None:
    branch = Branch(Sequence([1], SamplingParams(), seed=0, last_output=99), 2, 2)
    branch.add(5, 0.5, [Guess(6, 0.4), Guess(7, 0.01)])
    branch.add(8, 0.5, [Guess(9, 0.1), Guess(10, 0.1)])
    setting = Setting(1, 1, 20, 0.0, lambda count: 0.9 + 0.1 * count, lambda *_: 0.0, lambda _: 1.0)
    others = [(0.4, (0, 0)), (0.01, (0, 1)), (0.05, (1, 0)), (0.05, (1, 1))]
    choice = choose(setting, [Gains(branch, [0.5, 0.25], others)])
    assert choice.depths == {branch: 2}
    assert choice.others == {branch: [(0, 0)]}
    tree = branch.tree(2, choice.others[branch])
    assert tree.tokens == (5, 8, 6)
    assert tree.parents == (None, 0, None)
    assert not tree.is_chain
    assert tree.depth == 2
