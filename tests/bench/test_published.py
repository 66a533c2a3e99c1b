"""Published figures beside predictions: every one has its source, and the model is of the right size."""

import re
import tomllib

import pytest

from bench.published import FIGURES, Shape, figures, table
from tokc.cost.step_model import Step, StepWorks

FOUND = tuple(figures())
LLAMA = Shape("LLaMA 7B", 32, 4096, 11008, 32, 32, 128, 32000)


def test_at_least_three_are_of_an_h100() -> None:
    assert sum(one.device == "h100-sxm" for one in FOUND) >= 3


def test_every_source_has_a_page_and_a_day() -> None:
    for source in tomllib.loads(FIGURES.read_text())["source"]:
        assert source["url"].startswith("https://")
        assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", source["published"])


def test_the_plain_decoder_has_the_weights_and_operations_of_its_shape() -> None:
    works = StepWorks(LLAMA.launches(16), LLAMA.launches(16), 0, 1)
    weights = sum(one.count * one.work.whole_bytes for one in works.wide) / 2
    assert weights == pytest.approx(6.74e9 - 32000 * 4096, rel=0.01)  # all parameters but the embedding's
    cached = sum(one.count * one.work.cached_bytes for one in works.wide)
    assert cached == 2 * 32 * 4096 * 2
    assert Step(1, 1).size(0).cached == 1


def test_predictions_are_of_the_published_size() -> None:
    for one in FOUND:
        assert 0.3 < one.predicted / one.measured < 2, one


def test_the_table_states_each_error() -> None:
    text = table()
    assert all(f"{one.error:+.0%}" in text for one in FOUND)
    assert "on average" in text
