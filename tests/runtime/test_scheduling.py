"""Who is served first: priority, and waiting that makes up for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.hash_model import HashModel
from tokc.runtime.core import Core
from tokc.runtime.scheduler import AGEING_S
from tokc.runtime.sequence import SamplingParams, Sequence


def sequence(priority: int, submitted_s: float, tokens: int = 4) -> Sequence:
    one = Sequence([1] * tokens, SamplingParams(), seed=0, last_output=4)
    one.priority, one.submitted_s = priority, submitted_s
    return one


def order_of(waiting: list[Sequence]) -> list[Sequence]:
    """Return the sequences in the order in which they get their first token, one at a time."""
    core = Core(HashModel(max_seqs=1))
    for one in waiting:
        core.add(one)
    order: list[Sequence] = []
    while not core.idle:
        for event in core.step():
            if event.sequence not in order:
                order.append(event.sequence)
    return order


def test_the_lower_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    waiting = [sequence(1, 0.0), sequence(0, 1.0), sequence(0, 1.0), sequence(-1, 2.0)]
    assert order_of(waiting) == [waiting[3], waiting[1], waiting[2], waiting[0]]


def test_one_that_waited_long_enough_is_overtaken_no_more() -> None:
    old = sequence(3, 0.0)
    just, late = sequence(0, 3 * AGEING_S - 0.1), sequence(0, 3 * AGEING_S + 0.1)
    assert order_of([old, late, just]) == [just, old, late]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 100)), min_size=2, max_size=12))
@settings(deadline=None, max_examples=40)
def test_nobody_is_overtaken_by_one_that_came_a_bounded_time_later(arrivals: list[tuple[int, int]]) -> None:
    waiting = [sequence(priority, when) for priority, when in arrivals]
    order = order_of(waiting)
    for place, one in enumerate(order):
        for earlier in order[:place]:
            gained_s = (one.priority - earlier.priority) * AGEING_S
            assert earlier.submitted_s <= one.submitted_s + gained_s


@pytest.mark.parametrize("first_urgent", [True, False])
def test_the_least_urgent_gives_its_pages_back(first_urgent: bool) -> None:
    core = Core(HashModel(num_pages=6, page_size=4, max_seqs=2))
    pair = [sequence(0 if first_urgent else 5, 0.0, 8), sequence(5 if first_urgent else 0, 0.0, 8)]
    for one in pair:
        one.last_output = 20
        core.add(one)
    while core.gauges.preemptions == 0:
        core.step()
    urgent = min(pair, key=lambda one: one.priority)
    assert core.scheduler.running == [urgent]


def run_all(core: Core, *sequences: Sequence) -> int:
    """Run sequences, given at once, to their ends; return how often one gave its pages back."""
    for one in sequences:
        core.add(one)
    while not core.idle:
        core.step()
    return core.gauges.preemptions


def outputs(tokens: int, count: int) -> Sequence:
    one = sequence(0, 0.0, tokens)
    one.last_output = count
    return one


def test_a_full_cache_preempts_nobody_whose_pages_suffice() -> None:
    core = Core(HashModel(num_pages=5, page_size=4, max_seqs=2))
    assert run_all(core, outputs(7, 5), outputs(5, 3)) == 0  # they end with three pages and with two


def test_who_comes_later_leaves_a_page_to_each_that_runs() -> None:
    core = Core(HashModel(num_pages=4, page_size=4, max_seqs=2))
    assert run_all(core, outputs(8, 2), outputs(8, 2)) == 0


@pytest.mark.parametrize(("tokens", "found"), [(8, 4), (9, 8), (11, 8), (12, 8), (13, 12)])
def test_all_full_pages_of_a_prompt_are_found_but_for_its_last_token(tokens: int, found: int) -> None:
    core = Core(HashModel(page_size=4))
    again = outputs(tokens, 1)
    run_all(core, outputs(tokens, 1))
    run_all(core, again)
    assert again.cached_tokens == found


def test_pages_for_drafts_are_what_runs_can_spare() -> None:
    core = Core(HashModel(num_pages=5, page_size=4, max_seqs=2))
    one = outputs(6, 9)
    core.add(one)
    core.step()
    assert len(one.tokens) == 7
    assert core.scheduler.grow(one, 1) == 1
    assert core.scheduler.grow(one, 3) == 3
    assert core.scheduler.grow(one, 40) == 4 * 4 - 7  # a fifth page stays for the sequence itself
