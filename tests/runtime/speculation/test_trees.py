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
from tokc.runtime.speculation.controller import Candidate, Setting, choose
from tokc.runtime.speculation.draft_model import DraftModelDrafter
from tokc.runtime.speculation.drafter import Draft, Guess, tree_of
from tokc.runtime.speculation.speculation import Speculation


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8}])
@given(
    prompts=PROMPTS,
    budget=st.integers(4, 16),
    pages=st.integers(10, 40),
    kinds=st.fixed_dictionaries({"eager": st.booleans(), "branches": st.booleans()}),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_whatever_tree_is_drafted_answers_are_the_same(
    params: dict[str, Any],
    prompts: list[list[int]],
    budget: int,
    pages: int,
    kinds: dict[str, bool],
    seed: int,
) -> None:
    options = {"max_tokens": 14, **params}
    plain = answers_of(engine_of(HashModel(num_pages=pages)), prompts, **options)
    known = {tuple(prompt): one.token_ids for prompt, one in zip(prompts, plain, strict=True)}
    kind = Eager if kinds["eager"] else Speculation
    speculation = kind(Arbitrary(known, seed=seed, branches=kinds["branches"]), most=4, trees=True)
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

    branches = False

    def __init__(self, drafter: DraftModelDrafter) -> None:
        self.drafter, self.stride, self.priors = drafter, 1, drafter.priors
        self.due, self.observe = drafter.due, drafter.observe
        self.forget, self.close = drafter.forget, drafter.close

    def extend(self, drafts: list[Draft]) -> int:
        computed = self.drafter.extend(drafts)
        for draft in drafts:
            if draft.nodes[1:]:
                first, second = draft.nodes[:2]
                first.token, second.token = second.token, first.token
            draft.close()
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


def test_nodes_are_verified_as_far_as_they_are_worth_it() -> None:
    draft = Draft(Sequence([1], SamplingParams(), seed=0, last_output=99), 2, 2)
    draft.follow(draft.root, [Guess(5, 0.5), Guess(6, 0.4), Guess(7, 0.01)])
    draft.follow(draft.nodes[0], [Guess(8, 0.5), Guess(9, 0.1), Guess(10, 0.1)])
    setting = Setting(1, 1, 20, 0.0, lambda count: 0.9 + 0.1 * count, lambda *_: 0.0, lambda _: 1.0)
    gains = [0.5, 0.4, 0.01, 0.25, 0.05, 0.05]
    choice = choose(setting, [Candidate(*one) for one in zip(gains, [draft] * 6, draft.nodes, strict=True)])
    tree = tree_of(choice.verified[draft])
    assert tree.tokens == (5, 8, 6)
    assert tree.parents == (None, 0, None)
    assert not tree.is_chain
    assert tree.depth == 2


@pytest.mark.parametrize("params", [{}, {"temperature": 0.8, "top_p": 0.9}])
@given(prompts=PROMPTS, budget=st.integers(4, 16), pages=st.integers(10, 40), cached=st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_model_that_drafts_trees_computes_each_node_behind_its_path(
    params: dict[str, Any], prompts: list[list[int]], budget: int, pages: int, *, cached: bool
) -> None:
    options = {"max_tokens": 14, **params}
    plain = answers_of(engine_of(HashModel(num_pages=pages)), prompts, **options)
    model, draft = TreeModel(num_pages=pages), TreeModel(num_pages=pages)
    drafter = DraftModelDrafter(draft, vocab_size=model.vocab_size)
    engine = engine_of(model, Eager(drafter, most=3, trees=True), token_budget=budget, prefix_cache=cached)
    for _ in range(2):
        drafted = answers_of(engine, prompts, **options)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    counts = engine.counters.drafts  # a twin is right: all but the last of a draft's paths hold
    unfinished = [one for one in plain if len(one.token_ids) > 4]
    assert counts.accepted > 0 or not unfinished


def test_a_level_of_a_tree_is_drafted_in_one_call() -> None:
    model, draft = TreeModel(num_pages=64, max_seqs=64, max_tokens=64), TreeModel(num_pages=64, max_tokens=64)
    drafter = DraftModelDrafter(draft, vocab_size=model.vocab_size)
    engine = engine_of(model, Eager(drafter, most=3, trees=True))
    answers_of(engine, [b"a prompt"], max_tokens=41, ignore_eos=True)
    assert engine.counters.steps == 1 + 10  # a twin is right: three drafted tokens and the model's own
    assert engine.counters.drafts.accepted_at == [10] * 3
    for depth, step in enumerate(draft.steps[1:3]):
        assert step.ancestors is not None
        assert [mask.bit_count() for mask in step.ancestors.tolist()] in ([0] * 3, [0] + [1] * 8, [1] * 9)
        assert len(step.input_ids) == 3 ** (depth + 1)
