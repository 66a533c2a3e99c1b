"""Two engines measured in turns, over a model that is made of hashes."""

import time

import pytest

from tests.runtime.conftest import MakeEngine, make_engine
from tokc.cost.measure import Load
from tokc.cost.paired import measure_paired
from tokc.errors import TokcError
from tokc.runtime.engine import Engine

__all__ = ["make_engine"]
LOAD = Load(prompt_tokens=8, output_tokens=4, repetitions=4)


def slowed(engine: Engine, delay_s: float, monkeypatch: pytest.MonkeyPatch) -> Engine:
    step = engine.executor.step

    def slow(batch: object) -> object:
        time.sleep(delay_s)
        return step(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.executor, "step", slow)
    return engine


def test_a_slower_engine_is_found_out(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = slowed(make_engine(context_length=64, num_pages=64), 0.004, monkeypatch)
    slow = slowed(make_engine(context_length=64, num_pages=64), 0.012, monkeypatch)
    found = {(one.name, one.batch): one for one in measure_paired((fast, slow), (1, 2), LOAD)}
    assert set(found) == {(name, batch) for name in ("ttft", "tpot", "tokens_per_s") for batch in (1, 2)}
    tpot = found["tpot", 1]
    assert tpot.ratio.repetitions == tpot.before.repetitions == LOAD.repetitions
    assert tpot.ratio.conclusive
    assert 1.5 < tpot.ratio.value < 3.5
    assert found["tokens_per_s", 1].ratio.value < 0.7


def test_both_are_asked_the_same_and_nothing_twice(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = (make_engine(context_length=64, num_pages=64), make_engine(context_length=64, num_pages=64))
    asked: list[list[list[list[int]]]] = [[], []]
    for side, engine in enumerate(engines):
        real = engine.generate_all

        def noted(
            prompts: list[list[int]], side: int = side, real: object = real, **options: object
        ) -> object:
            if options["max_tokens"] == LOAD.output_tokens:
                asked[side].append(prompts)
            return real(prompts, **options)  # type: ignore[operator]

        monkeypatch.setattr(engine, "generate_all", noted)
    load = Load(prompt_tokens=8, output_tokens=5, repetitions=3)
    monkeypatch.setattr("tests.cost.test_paired.LOAD", load)
    measure_paired(engines, (2,), load)
    assert asked[0] == asked[1]
    prompts = [tuple(prompt) for round_ in asked[0] for prompt in round_]
    assert len(prompts) == len(set(prompts)) == 6


def test_what_exceeds_the_context_is_refused(make_engine: MakeEngine) -> None:
    engines = (make_engine(context_length=64), make_engine(context_length=8))
    with pytest.raises(TokcError, match="exceed the context of 8"):
        measure_paired(engines, (1,), LOAD)
