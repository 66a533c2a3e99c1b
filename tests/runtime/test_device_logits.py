"""Logits that stay on the device: what crosses to the host, and that tokens are the host's own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.gpu_drivers import InterpreterDriver
from tests.runtime.gpu_model import KERNELS, PAGE, VOCAB, Pages, write_gpu_artifact
from tokc.runtime.core import Core
from tokc.runtime.executors.base import Batch, Float32s
from tokc.runtime.executors.gpu import GpuExecutor
from tokc.runtime.sequence import SamplingParams, Sequence

ROW_BYTES = 4 * 16  # as the head writes it, wider than the vocabulary
STEPS = 6
GREEDY = SamplingParams()
DRAWN = replace(GREEDY, temperature=1.5, top_p=0.9, top_k=9)
PENALIZED = replace(GREEDY, frequency_penalty=1.5)


class OnTheHost(GpuExecutor):
    """Brings all logits over and leaves every choice to the host."""

    def step(self, batch: Batch) -> Float32s:  # type: ignore[override]
        found = super().step(batch).copy()
        self.likeliest = None
        return found


def opened(path: Path, kind: type[GpuExecutor]) -> GpuExecutor:
    driver = InterpreterDriver({kernel.symbol: kernel for kernel in KERNELS})
    return kind(write_gpu_artifact(path), driver, kv_bytes=4 * PAGE * 80)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[GpuExecutor]:
    found = opened(tmp_path / "small.tokc", GpuExecutor)
    yield found
    found.close()
    assert found.driver.alive() == {}


def answers(executor: GpuExecutor, *params: SamplingParams) -> list[list[int]]:
    """Return the output of a sequence for each of `params`, all in the same steps."""
    core = Core(executor)
    sequences = [
        Sequence([1 + at, 2, 3], each, seed=7 + at, last_output=STEPS) for at, each in enumerate(params)
    ]
    for one in sequences:
        core.add(one)
    while not core.idle:
        core.step()
    return [one.output for one in sequences]


def brought(executor: GpuExecutor) -> list[int]:
    """Return the sizes of what went to the host."""
    return [len(data) for kind, _, data in executor.driver.copies if kind == "to host"]


def test_a_row_is_brought_when_it_is_first_looked_at(executor: GpuExecutor) -> None:
    pages = Pages(executor.num_pages)
    batch = pages.batch({0: [1, 2, 3], 1: [7]}, rows=[0, 2, 3])
    logits = executor.step(batch)
    assert brought(executor) == [3 * 4]
    assert (len(logits), logits.shape) == (3, (3, VOCAB))
    expected = pages.expected(batch)
    for _ in range(2):
        np.testing.assert_allclose(logits[1], expected[1], rtol=2e-3, atol=2e-3)
    assert brought(executor)[1:] == [ROW_BYTES]
    np.testing.assert_allclose(np.asarray(logits), expected, rtol=2e-3, atol=2e-3)
    assert brought(executor)[2:] == [3 * ROW_BYTES]


def test_logits_of_an_earlier_step_are_not_to_be_had(executor: GpuExecutor) -> None:
    pages = Pages(executor.num_pages)
    before = executor.step(pages.batch({0: [1]}))
    executor.step(pages.batch({0: [2]}))
    with pytest.raises(AssertionError, match="valid until the next step"):
        before[0]


def test_greedy_answers_move_no_logits(executor: GpuExecutor) -> None:
    answers(executor, GREEDY, GREEDY, GREEDY)
    assert brought(executor) == [3 * 4] * STEPS


def test_only_those_that_need_them_move_their_logits(executor: GpuExecutor) -> None:
    answers(executor, GREEDY, PENALIZED, GREEDY)
    assert sorted(brought(executor)) == [3 * 4] * STEPS + [ROW_BYTES] * STEPS


def test_every_choice_is_the_hosts(executor: GpuExecutor, tmp_path: Path) -> None:
    asked = (GREEDY, DRAWN, PENALIZED, replace(GREEDY, logprobs=2))
    host = opened(tmp_path / "host.tokc", OnTheHost)
    expected = answers(host, *asked)
    host.close()
    assert answers(executor, *asked) == expected
    assert len({tuple(output) for output in expected}) > 2
