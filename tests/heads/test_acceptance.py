import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokc.heads.acceptance import Acceptance, chain, total


def drafted(answer: list[int], guesses: np.ndarray) -> tuple[int, list[int], list[int]]:
    """Follow an answer as the runtime does: draft, hold as far as it equals, go on behind; count by hand.

    `guesses[j, n]` is what a draft names as the token n + 1 of the answer in its step j.
    """
    depth = len(guesses)
    known, steps, held, reached = 1, 0, [0] * depth, [0] * depth
    while known < len(answer):
        steps += 1
        draft = [int(guesses[j, known - 1 + j]) for j in range(depth) if known + j < len(answer)]
        true = answer[known : known + len(draft)]
        same = next((j for j, (a, b) in enumerate(zip(draft, true, strict=True)) if a != b), len(draft))
        for j in range(len(draft)):
            reached[j] += j <= same
            held[j] += j < same
        known += same + 1
    return steps, held, reached


@given(st.integers(1, 4), st.lists(st.integers(0, 2), min_size=1, max_size=30), st.randoms())
def test_a_chain_holds_as_the_runtime_would_accept_it(depth: int, answer: list[int], random) -> None:
    guesses = np.array([[random.randint(0, 2) for _ in answer] for _ in range(depth)])
    hits = np.array([[g == t for g, t in zip(row, [*answer[1:], -1], strict=True)] for row in guesses])
    found = chain(hits)
    steps, held, reached = drafted(answer, guesses)
    assert (found.steps, list(found.held), list(found.reached)) == (steps, held, reached)
    full = sum(held) + steps
    assert full - depth <= len(answer) - 1 <= full


def test_drafts_that_always_hold_make_a_step_of_all_tokens_and_one_more() -> None:
    found = chain(np.ones((3, 13), bool))
    assert found.by_position == (1.0, 1.0, 1.0)
    assert found.mean_length == 4.0
    nothing = chain(np.zeros((3, 13), bool))
    assert nothing.mean_length == 1.0
    assert nothing.reached == (12, 0, 0)


def test_counts_of_tasks_add_up() -> None:
    found = total({"chat": Acceptance(4, (3, 1), (4, 3)), "code": Acceptance(2, (2, 2), (2, 2))})
    assert found == Acceptance(6, (5, 3), (6, 5))
    assert found.mean_length == 1 + 8 / 6
