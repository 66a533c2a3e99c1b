"""Predicted steps: their work is that of the same steps taken, and time follows it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cost.test_profile import PLAN, step
from tokc.cost.efficiency import ANY, Efficiencies, Efficiency
from tokc.cost.launch_work import LaunchWork
from tokc.cost.profile import Roofs, StepSize
from tokc.cost.roofline import OpWork, StepWork, Work
from tokc.cost.step_model import Step, StepModel, StepWorks
from tokc.errors import TokcError

ROOFS = Roofs(read_bytes_per_s=50e9, f32_flops_per_s=500e9, int8_flops_per_s=2000e9)
AT_THE_ROOFS = Efficiencies((), "")
LIMITS = {"limits": {"tokens": 512}}


def model(efficiencies: Efficiencies = AT_THE_ROOFS) -> StepModel:
    return StepModel(StepWorks.of(PLAN | LIMITS), ROOFS, efficiencies)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 3, 16]))
def test_sizes_are_those_of_the_step_itself(sequences: int, tokens: int, before: int, window: int) -> None:
    count = tokens if sequences == 1 else 1
    positions = [list(range(before, before + count)) for _ in range(sequences)]
    assert Step(sequences, before + count, count).size(window) == StepSize.of(
        step(*positions, rows=sequences), window
    )


def test_a_step_takes_what_its_launches_take() -> None:
    linear = max((1e6) / 50e9, 2 * 2e6 / 2000e9) + 2 * 100 / 50e9
    head = max(1e6 / 50e9, 2 * 2e6 / 2000e9) + 2 * 100 / 50e9
    attention = max(2 * 10 * 256 / 50e9, 2 * 10 * 1000 / 500e9) + 2 * 10 / 50e9
    assert model().step_s(Step(2, 10)) == pytest.approx(2 * linear + head + attention)


def test_launches_barriers_and_the_engine_are_added() -> None:
    overhead = Efficiencies((Efficiency(ANY, 1e-6, 1.0, 1.0, 1.0),), "", 5e-5, 3e-5, 1e-5)
    more = model(overhead).decode_s(4, 100) - model().decode_s(4, 100)
    assert more == pytest.approx(4 * 1e-6 + 5e-5 + 3e-5 + 4 * 1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 63), st.integers(1, 4000))
def test_more_sequences_and_more_context_never_take_less(batch: int, context: int) -> None:
    here = model().decode_s(batch, context)
    assert model().decode_s(batch + 1, context) >= here
    assert model().decode_s(batch, context + 1) >= here


def test_a_prompt_is_read_in_chunks() -> None:
    chunks = model().step_s(Step(1, 512, 512)) + model().step_s(Step(1, 700, 188))
    assert model().prompt_s(700) == pytest.approx(chunks)
    assert model().prompt_s(700, chunk=100) > chunks


def test_narrow_steps_run_narrow_kernels() -> None:
    work = LaunchWork("int8", row_flops=2e6, whole_bytes=1e6)
    narrow = {"op": "QuantLinear", "rows": "tokens", "steps": "narrow", "work": work.to_json()}
    wide = narrow | {"steps": "wide", "work": work.moving_only().to_json()}
    works = StepWorks.of({"launches": [narrow, wide], "limits": {"tokens": 64, "narrow_tokens": 16}})
    assert [one.work for one in works.launches(Step(16, 5))] == [work]
    assert [one.work for one in works.launches(Step(17, 5))] == [work.moving_only()]


def test_without_a_plan_the_counted_work_is_taken() -> None:
    ops = (OpWork("QuantLinear", 2, 4e6, 2e6), OpWork("PagedAttention", 1, 1e5, 2e4))
    works = StepWorks.of_work(Work(StepWork(1, 100, ops), StepWork(512, 512, ())))
    linear, attention = works.wide
    assert (linear.count, linear.work) == (2, LaunchWork(row_flops=2e6, whole_bytes=1e6))
    assert attention.work.memory_bytes(1, 100) == pytest.approx(2e4)
    assert attention.work.flops(1, 100) == pytest.approx(1e5)


def test_a_plan_of_before_is_refused() -> None:
    with pytest.raises(TokcError, match="does not state the work"):
        StepWorks.of({"launches": [{"op": "QuantLinear", "rows": "tokens"}], "limits": {"tokens": 4}})


def test_times_by_kind_add_up() -> None:
    found = model().time_by_kind(Step(3, 50))
    assert set(found) == {"QuantLinear 8 bits", "PagedAttention"}
    assert np.isclose(sum(found.values()), model().step_s(Step(3, 50)))
