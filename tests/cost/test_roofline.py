import json
from pathlib import Path

import pytest

from tests.report.sample import HOST
from tokc.cost.roofline import OpWork, StepWork, Work, predict, read_work
from tokc.errors import TokcError

STEP = StepWork(1, 1000, (OpWork("QuantLinear", 2, 4e9, 1e6), OpWork("PagedAttention", 1, 1e3, 8e6)))


def test_each_op_is_bound_by_what_takes_longer() -> None:
    prediction = predict(STEP, HOST)
    assert [op.bound for op in prediction.ops] == ["compute", "bandwidth"]
    assert prediction.seconds == pytest.approx(4e9 / HOST.int8_flops_per_s + 8e6 / HOST.read_bytes_per_s)


def test_more_sequences_read_the_weights_once() -> None:
    linear, attention = STEP.at(sequences=8).ops
    assert (linear.bytes, linear.flops) == (1e6, 32e9)
    assert attention.bytes == 64e6


def test_attention_grows_with_the_context() -> None:
    linear, attention = STEP.at(context=500).ops
    assert linear == STEP.ops[0]
    assert attention.bytes == 4e6


def test_a_damaged_file_names_the_field(tmp_path: Path) -> None:
    step = {"tokens": 1, "context": 8, "ops": [{"op": "Linear", "count": 1, "flops": 1}]}
    (tmp_path / "cost.json").write_text(json.dumps({"decode": step, "prefill": step}))
    with pytest.raises(TokcError, match=r"'decode.ops\[0\].bytes' is not given"):
        read_work(tmp_path)


def test_reading_prompts_reads_weights_once_a_chunk_and_each_cache_once() -> None:
    prefill = StepWork(
        512, 512, (OpWork("QuantLinear", 2, 512e9, 9e9), OpWork("PagedAttention", 1, 512e3, 9e9))
    )
    linear, attention = Work(STEP, prefill).reading(batch=8, prompt=128).ops
    assert (linear.flops, linear.bytes) == (1024e9, 2e6)
    assert attention.flops == pytest.approx(1024e3 * 64 / 512)
    assert attention.bytes == pytest.approx(8e6 * 128 / 1000 * 8)


def test_more_sequences_read_more_of_the_experts_but_never_more_than_all() -> None:
    experts = OpWork("QuantMoeLinear", 2, 4e9, bytes=2e6, every_expert_bytes=8e6)
    step = StepWork(1, 1000, (experts,))
    assert step.at(sequences=1).bytes == 2e6
    assert step.at(sequences=2).bytes == pytest.approx(8e6 * (1 - 0.75**2))
    assert step.at(sequences=100).bytes == pytest.approx(8e6)
