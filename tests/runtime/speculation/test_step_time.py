"""Times of steps: measured figures, and a line where nothing was measured."""

import pytest

from tokc.runtime.speculation.step_time import StepTime


def test_a_line_is_learned_from_steps_and_begins_with_a_guess() -> None:
    time = StepTime()
    assert 1.05 < time.seconds(2) / time.seconds(1) < 1.3
    for tokens in (1, 2, 4, 8) * 40:
        time.learn(tokens, 0.004 + 0.0001 * tokens)
    for tokens in (1, 3, 8, 12):
        assert time.seconds(tokens) == pytest.approx(0.004 + 0.0001 * tokens, rel=0.05)


def test_a_jump_between_two_numbers_of_tokens_is_kept() -> None:
    time = StepTime()
    for tokens in (1, 2, 3, 4, 5, 6) * 40:
        time.learn(tokens, 0.002 if tokens <= 4 else 0.003)
    assert time.seconds(4) == pytest.approx(0.002, rel=0.05)
    assert time.seconds(5) == pytest.approx(0.003, rel=0.05)


def test_a_machine_that_slows_down_changes_every_figure() -> None:
    time = StepTime()
    for tokens in (1, 2, 4) * 40:
        time.learn(tokens, 0.001 * (1 + tokens))
    ratio = time.seconds(4) / time.seconds(1)
    for _ in range(60):
        time.learn(4, 2 * 0.005)
    assert time.seconds(1) > 1.6 * 0.002
    assert time.seconds(4) / time.seconds(1) < 1.25 * ratio


def test_one_step_that_took_far_too_long_changes_little() -> None:
    time = StepTime()
    for _ in range(50):
        time.learn(1, 0.01)
    time.learn(1, 10.0)
    assert time.seconds(1) < 0.014


def test_a_draft_that_was_never_timed_takes_its_share_of_a_step() -> None:
    time = StepTime()
    draft = StepTime(share=0.2, of=time)
    time.learn(1, 0.01)
    assert draft.seconds(1) == pytest.approx(0.002)
    assert draft.seconds(0) == 0
