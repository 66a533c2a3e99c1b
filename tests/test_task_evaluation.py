"""Tasks through lm_eval: the likelihoods against transformers, the scores against counting by hand."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.reading_model import reading_folder
from tests.tiny_models import tiny_model
from tokc.errors import TokcError, UnknownOption
from tokc.importers import import_model
from tokc.quality.running import ProgramRun
from tokc.quality.tasks import FOLDER
from tokc.runtime.tokenizer import Tokenizer
from tokc.task_evaluation import ProgramWriter, _of_model, score_tasks

harness = pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
SIZES = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 257}
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: c
doc_to_target: a
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_folder(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=128)


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny_model("smollm2", max_position_embeddings=128, **SIZES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a task on local files reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def likelihood(reference: Any, ids: list[int], count: int) -> tuple[float, bool]:
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0, -count - 1 : -1].double()
    targets = torch.tensor(ids[-count:])
    chosen = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(chosen), bool((logits.argmax(-1) == targets).all())


def asked(*texts: Any) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=text) for text in texts]


def test_likelihoods_are_those_of_transformers(model: Path, reference: Any) -> None:
    from tokc.quality.harness import HarnessModel

    parts = _of_model(model, 2)
    tokens = parts.tokenizer.encode
    pairs = [("the sea", " is blue"), ("a ", "b"), ("", "alone")]
    found = HarnessModel(parts).loglikelihood(asked(*pairs))
    whole = [tokens("the sea is blue"), tokens("a b"), [256, *tokens("alone")]]
    for one, ids, count in zip(found, whole, (8, 2, 5), strict=True):
        expected = likelihood(reference, ids, count)
        assert one[0] == pytest.approx(expected[0], abs=1e-4)
        assert one[1] == expected[1]


def test_a_rolling_likelihood_predicts_each_token_once_over_windows(model: Path, reference: Any) -> None:
    from tokc.quality.harness import HarnessModel

    parts = _of_model(model, 2)
    text = "of many things and of nothing in particular " * 5
    ids = parts.tokenizer.encode(text)
    assert len(ids) == 220
    (found,) = HarnessModel(parts).loglikelihood_rolling(asked((text,)))
    first, second = [256, *ids[:128]], ids[91:]
    expected = likelihood(reference, first, 128)[0] + likelihood(reference, second, 92)[0]
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_writer_stops_before_a_stop_string_and_at_the_bound(model: Path) -> None:
    tokenizer = Tokenizer((model / "tokenizer.json").read_text())
    with ProgramRun(import_model(model)) as run:
        writer = ProgramWriter(run, tokenizer, frozenset())
        whole = writer.write(tokenizer.encode("once upon a time"), 8, ())
        assert len(tokenizer.encode(whole)) <= 24
        assert whole
        stop = whole[3]
        assert writer.write(tokenizer.encode("once upon a time"), 8, (stop,)) == whole[: whole.index(stop)]


def test_a_folder_of_tasks_is_scored_as_counted_by_hand(model: Path, reference: Any, tmp_path: Path) -> None:
    items = [{"q": f"item {n}", "c": [f"x{n}", f"yy{n}", f"zzz{n}"], "a": n % 3} for n in range(9)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "mine.yaml").write_text(CHOICE.format(name="mine", data="items.jsonl"))
    encode = Tokenizer((model / "tokenizer.json").read_text()).encode
    right = 0
    for item in items:
        sums = [
            likelihood(reference, encode(f"{item['q']} {one}"), len(encode(f" {one}")))[0]
            for one in item["c"]
        ]
        right += int(np.argmax(sums)) == item["a"]
    (score,) = score_tasks(model, [str(tmp_path)])
    assert (score.task, score.metric, score.items) == ("mine", "acc", 9)
    assert score.score.figure == pytest.approx(right / 9)
    assert score.score.low is not None
    assert score.score.low <= score.score.figure


def test_what_is_no_task_lists_those_there_are(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownOption, match="unknown task 'nonsense'; choose from tokc, tokc_answers, tokc_choices"
    ):
        score_tasks(model, ["nonsense"])
    (tmp_path / "broken.yaml").write_text(CHOICE.format(name="broken", data="missing.jsonl"))
    with pytest.raises(TokcError, match=r"no file 'missing.jsonl' beside the task"):
        score_tasks(model, [str(tmp_path)])


def test_the_tasks_that_come_with_tokc_are_whole() -> None:
    choices, answers = (
        [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]
        for name in ("choices.jsonl", "answers.jsonl")
    )
    assert len(choices) >= 40
    assert len(answers) >= 20
    assert len({item["question"] for item in (*choices, *answers)}) == len(choices) + len(answers)
    for item in choices:
        assert len(set(item["choices"])) == 4
    places = [item["answer"] for item in choices]
    assert {places.count(place) for place in range(4)} == {len(choices) // 4}
    assert all(item["answer"].strip() for item in answers)
