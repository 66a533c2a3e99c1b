"""The texts that come with tokc."""

import pytest

from tokc.errors import TokcError
from tokc.quality.text import calibration_text, evaluation_text, windows


def test_no_paragraph_is_both_calibrated_and_evaluated_on() -> None:
    def long_paragraphs(text: str) -> set[str]:
        return {part for part in text.split("\n\n") if len(part) > 80}

    assert not long_paragraphs(calibration_text()) & long_paragraphs(evaluation_text())


def test_windows_are_spread_from_the_first_token_to_the_last() -> None:
    assert windows(range(10), count=3, length=2).tolist() == [[0, 1], [4, 5], [8, 9]]


def test_a_short_text_gives_the_windows_that_it_holds() -> None:
    assert windows(range(5), count=9, length=2).tolist() == [[0, 1], [3, 4]]


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(TokcError, match="fewer than one window of 8"):
        windows(range(7), count=1, length=8)
