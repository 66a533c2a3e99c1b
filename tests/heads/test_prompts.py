import pytest

from tokc.errors import UnknownOption
from tokc.heads.prompts import TASKS, held_out_prompts, is_held_out, prompt


def test_no_document_is_both_trained_on_and_held_out() -> None:
    trained = {prompt(index, "training").document for index in range(400)}
    held_out = {one.document for task in TASKS for one in held_out_prompts(task, 40)}
    assert len(trained) > 100
    assert len(held_out) > 40
    assert not trained & held_out
    assert all(is_held_out(name) for name in held_out - {"evaluation.txt"})


def test_no_held_out_topic_is_named_in_a_question_of_training() -> None:
    topics = {one.document for one in held_out_prompts("chat", 100)}
    asked = [prompt(index, "training").text for index in range(0, 1200, len(TASKS))]
    assert not [(topic, text) for topic in topics for text in asked if f"about {topic}?" in text]


def test_prompts_are_the_same_for_a_seed_and_take_the_tasks_in_turns() -> None:
    row = [prompt(index, "training", seed=3) for index in range(40)]
    assert row == [prompt(index, "training", seed=3) for index in range(40)]
    assert row != [prompt(index, "training", seed=4) for index in range(40)]
    assert [one.task for one in row] == [*TASKS] * 10
    assert len({one.text for one in row}) == 40


def test_a_function_to_be_edited_comes_with_its_code() -> None:
    for one in held_out_prompts("code editing", 5):
        assert "```python\ndef " in one.text or "```python\n@" in one.text
        assert "None`" not in one.text


def test_an_unknown_task_is_refused_with_the_tasks() -> None:
    with pytest.raises(UnknownOption, match="unknown task 'poetry'; choose from chat, code editing"):
        held_out_prompts("poetry", 1)
