"""Workloads: the same every time, of the shape that their names say, or exactly a user's trace."""

import json
import statistics
from pathlib import Path

import pytest

from tokc.cost.serving.workload import CHARACTERS_PER_TOKEN, SHAPES, named_workload
from tokc.errors import UnknownOption
from tokc.quality.text import calibration_text


@pytest.mark.parametrize("name", SHAPES)
def test_requests_are_the_same_every_time_and_differ_between_repetitions(name: str) -> None:
    workload = named_workload(name, calibration_text())
    assert workload.asks(1, 20) == named_workload(name, calibration_text()).asks(1, 20)
    assert workload.asks(1, 20) != workload.asks(2, 20)


@pytest.mark.parametrize("name", SHAPES)
def test_all_requests_of_a_workload_begin_alike(name: str) -> None:
    shape, asks = SHAPES[name], named_workload(name, calibration_text()).asks(0, 30)
    shared = shape.shared * CHARACTERS_PER_TOKEN
    assert len({ask.prompt[:shared] for ask in asks}) == 1
    assert len({ask.prompt for ask in asks}) == 30


def test_lengths_have_the_median_of_the_shape() -> None:
    shape, asks = SHAPES["chat"], named_workload("chat", calibration_text()).asks(0, 400)
    own = [len(ask.prompt) / CHARACTERS_PER_TOKEN - shape.shared for ask in asks]
    assert statistics.median(own) == pytest.approx(shape.prompt, rel=0.2)
    assert statistics.median(ask.output_tokens for ask in asks) == pytest.approx(shape.output, rel=0.2)


def test_an_agents_turn_begins_with_the_turn_before() -> None:
    asks = named_workload("agent", calibration_text()).asks(0, 12)
    turns = SHAPES["agent"].turns
    for index in range(1, 12):
        assert asks[index].prompt.startswith(asks[index - 1].prompt) is (index % turns != 0)


def test_a_trace_is_taken_as_it_is_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"prompt": "b", "output_tokens": 3, "at_s": 2}, {"prompt": "a", "output_tokens": 2, "at_s": 0.5}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    workload = named_workload(str(path), "")
    assert workload.timed
    assert [(ask.prompt, ask.output_tokens, ask.at_s) for ask in workload.asks(7, 9)] == [
        ("a", 2, 0.5),
        ("b", 3, 2.0),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("3", "no object"),
        ('{"prompt": "a", "output_tokens": 1, "when": 1}', "unknown key 'when'"),
        ('{"output_tokens": 1}', "'prompt' is 'None'"),
        ('{"prompt": "a"}', "'output_tokens' is 'None'"),
        ('{"prompt": "a", "output_tokens": 0}', "'output_tokens' is '0'"),
        ('{"prompt": "a", "output_tokens": 1, "at_s": -1}', "'at_s' is '-1'"),
        ('{"prompt": "a", "output_tokens": 1, "at_s": NaN}', "'at_s' is 'nan'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 1}\n' + line + "\n")
    with pytest.raises(UnknownOption, match=problem) as refusal:
        named_workload(str(path), "")
    assert refusal.value.where == f"{path}:2"


def test_what_is_neither_a_name_nor_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="choose from chat, rag, code, agent"):
        named_workload("chatty", "")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UnknownOption, match="holds no request"):
        named_workload(str(tmp_path / "empty.jsonl"), "")
