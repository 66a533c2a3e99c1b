"""The commands that run a model, over a model that is made of hashes."""

import json
import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokc
from tests.report.sample import HOST, write_artifact
from tests.runtime.conftest import MakeEngine, make_engine
from tests.runtime.hash_model import HashModel
from tokc.cli.app import app
from tokc.cost import devices
from tokc.errors import TokcError
from tokc.runtime.engine import Engine

runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})
__all__ = ["make_engine"]


@pytest.fixture
def engine(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = make_engine(context_length=256, num_pages=256, max_tokens=64)
    monkeypatch.setattr(tokc, "load", lambda *_, **__: engine, raising=False)
    return engine


def answer(engine: Engine, *said: str, max_tokens: int) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(said)]
    return engine.chat(messages, max_tokens=max_tokens).text


def test_one_shot_prints_the_answer_alone(make_engine: MakeEngine, engine: Engine) -> None:
    expected = answer(make_engine(context_length=256), "hi", max_tokens=8)
    result = runner.invoke(app, ["run", "x", "--prompt", "hi", "--max-tokens", "8"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{expected}\n"
    assert isinstance(engine.executor, HashModel)
    assert engine.executor.closed


def test_chat_remembers_until_it_starts_over(make_engine: MakeEngine, engine: Engine) -> None:
    del engine
    other = make_engine(context_length=256, num_pages=256)
    first = answer(other, "hi", max_tokens=4)
    second = answer(other, "hi", first, "more", max_tokens=4)
    result = runner.invoke(
        app, ["run", "x", "--max-tokens", "4"], input="hi\nmore\n/new\nhi\n/quit\nnot read\n"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{first}\n{second}\n{first}\n"


def test_interrupt_stops_the_answer_and_not_the_program(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = engine.executor.step, []

    def interrupted(batch: object) -> object:
        steps.append(batch)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.executor, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = runner.invoke(app, ["run", "x", "--max-tokens", "100"], input="hi\nagain\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "(stopped)" in result.stderr
    assert len(result.stdout.splitlines()) >= 2
    assert 4 < len(steps) < 200
    assert engine.gauges.running == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_bench_writes_what_the_report_reads(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine
    monkeypatch.setattr(devices, "probe", lambda *_: HOST)
    artifact = write_artifact(tmp_path)
    command = ["bench", str(artifact), "--prompt-tokens", "8", "--output-tokens", "4", "--json"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)["points"]
    assert [point["batch"] for point in points] == [1, 8]
    assert all(point["tokens_per_s"]["repetitions"] == 3 for point in points)
    result = runner.invoke(app, ["report", str(artifact), "--price", "1/h", "--json"])
    assert {cost["basis"] for cost in json.loads(result.stdout)["costs"]} == {"measured"}


def test_bench_refuses_what_exceeds_the_context(engine: Engine, tmp_path: Path) -> None:
    del engine
    result = runner.invoke(app, ["bench", str(write_artifact(tmp_path)), "--prompt-tokens", "300"])
    assert isinstance(result.exception, TokcError)
    assert "exceed the context of 256" in str(result.exception)
    assert not list(tmp_path.glob("*.bench.json"))
