"""The paper estimate: its arithmetic by hand, and what no device can do."""

from dataclasses import replace

import pytest

from bench.scaling import Demand, Device, Model, Refusal, Replica, _grown, _models, replica_of
from bench.scaling_text import page
from tokc.cost.devices import Host
from tokc.cost.prices import Price
from tokc.cost.roofline import OpWork, StepWork, Work

# A step reads 1 GB of weights, and 1 MB of cache a sequence; a prompt's 100 tokens are 0.1 TFLOP.
WORK = Work(
    decode=StepWork(1, 1000, (OpWork("QuantLinear", 1, 1e9, 1e9), OpWork("PagedAttention", 1, 1.0, 1e7))),
    prefill=StepWork(100, 100, (OpWork("QuantLinear", 1, 1e11, 1e9), OpWork("PagedAttention", 1, 1.0, 1e5))),
)
MODEL = Model("one", 10**9, 10**4, WORK)
HOST = Host("a chip", "x", 1, 2 * 10**9, (), 1e12, 1e14, 1e14, "by hand", measured=False)
DEVICE = Device("chip", "cuda", HOST, watts=500, price=Price("p", 2.0, "by hand"))
DEMAND = Demand(
    users=86_400_000, requests_a_day=1, prompt=100, output=100, peak=1.0, reached=0.5, busy=0.5,
    python_s=1e-12, tpot_s=0.05, memory_used=1.0,
)  # fmt: skip


def served(demand: Demand = DEMAND, model: Model = MODEL, device: Device = DEVICE) -> Replica:
    found = replica_of(model, device, demand)
    assert isinstance(found, Replica)
    return found


def test_a_cycle_is_all_prompts_and_a_step_for_each_token() -> None:
    one = served(replace(DEMAND, memory_used=0.501))  # room for one sequence beside the weights
    assert one.batch == 1
    # Twice the least: 1 ms and 1 µs of cache for the prompt, 1 ms and 1.5 µs of cache for each step.
    assert one.prefill_s == pytest.approx(2 * (1e-3 + 1e-6))
    assert one.token_s == pytest.approx(2 * (1e-3 + 1e-6 + 100 * (1e-3 + 1.5e-6)) / 100)
    assert one.tokens_per_s == pytest.approx(1 / one.token_s)
    assert one.replicas == pytest.approx(100_000 / (one.tokens_per_s * 0.5), abs=1)
    assert one.kilowatts == pytest.approx(0.5 * one.replicas)
    assert one.usd_per_hour == pytest.approx(2.0 * one.replicas)


def test_one_layer_and_two_tell_what_four_take() -> None:
    one, two, four = (_models("smollm2-135m", layers)["cpu"] for layers in (1, 2, 4))
    assert _grown(one, two, 3) == four


def test_twice_the_users_take_twice_the_devices() -> None:
    assert served(replace(DEMAND, users=2 * DEMAND.users)).replicas == pytest.approx(
        2 * served().replicas, abs=1
    )


def test_no_device_makes_more_tokens_than_the_engine_can_handle() -> None:
    fast = replace(
        DEVICE, host=replace(HOST, read_bytes_per_s=1e18, f32_flops_per_s=1e20, int8_flops_per_s=1e20)
    )
    one = served(replace(DEMAND, python_s=1e-4), device=fast)
    assert one.tokens_per_s == pytest.approx(10_000, rel=0.01)
    assert one.python_share == pytest.approx(1, abs=0.01)


def test_a_batch_is_bounded_by_the_time_between_tokens() -> None:
    tight = served(replace(DEMAND, tpot_s=2.3e-3))
    assert tight.token_s <= 2.3e-3
    assert tight.batch < served().batch


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        (replace(DEMAND, memory_used=0.5), "does not fit: weights of 1.00 GB"),
        (replace(DEMAND, tpot_s=1e-3), "2 ms between tokens already alone"),
    ],
)
def test_what_cannot_be_served_says_why(demand: Demand, reason: str) -> None:
    found = replica_of(MODEL, DEVICE, demand)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert reason in page(demand, {"one": MODEL}, {"one": [found]}, own=1.0)
