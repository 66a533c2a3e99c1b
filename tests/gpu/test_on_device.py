"""Whole artifacts on this machine's GPU: built for it, against the program they were built from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.gpu.on_device import device, target_of
from tests.targets.gpu.test_whole_plan import CASES, CONTEXT, DECODED, PROMPTS, Case, case_of, decode
from tokc.compiler import Build, Request, build, precision
from tokc.quality.divergence import logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.gpu import GpuExecutor

pytestmark = pytest.mark.gpu
CACHE_BYTES = 1 << 24
QUESTION = [{"role": "user", "content": "Name three colours."}]


def on_device(built: Build) -> GpuExecutor:
    return GpuExecutor.open(Artifact.open(built.artifact), kv_bytes=CACHE_BYTES)


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    driver = device()
    yield target_of(driver)
    driver.close()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, target: str, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(request.param, target, tmp_path_factory.mktemp("model"), on_device)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, target: str, tmp_path_factory: pytest.TempPathFactory) -> Build:
    asked = Request(smollm2_gguf, target=target, precision=precision("int4", None), context=1024, check=False)
    return build(asked, tmp_path_factory.mktemp("smollm2") / "smollm2.tokc")


def test_prefill_and_decode_give_the_programs_tokens(case: Case) -> None:
    case.require_the_programs_tokens()


def test_the_chunk_and_the_company_change_no_bit(case: Case) -> None:
    case.require_the_same_bits_alone(DECODED)


def test_a_recorded_step_answers_as_the_direct_one_did(case: Case) -> None:
    executor = case.executor()
    span = np.arange(3, dtype=np.int32)
    table = np.arange(CONTEXT // executor.page_size, dtype=np.int32)[None]
    batch = Batch(span + 5, span, np.zeros_like(span), table, span)
    direct, recorded, replayed = (executor.step(batch).copy() for _ in range(3))
    seconds = executor.profile(batch)
    executor.close()
    assert (direct == recorded).all()
    assert (direct == replayed).all()
    narrow = [launch["steps"] != "wide" for launch in executor.plan["launches"]]
    assert (seconds[narrow, 0] > 0).all()
    assert (seconds[np.logical_not(narrow)] == 0).all()


def test_a_closed_model_leaves_the_devices_memory_free(case: Case) -> None:
    driver = device()
    before = driver.free_bytes()
    for _ in range(3):
        executor = case.executor()
        decode(executor, PROMPTS[1:], 32, 2)
        executor.close()
    driver.activate()
    # The driver keeps the code it loaded and its own pools; a model that stayed would be 3 caches.
    assert before - driver.free_bytes() < 2 * CACHE_BYTES
    driver.close()


def test_a_real_model_answers_as_its_program(smollm2: Build) -> None:
    with Engine.open(smollm2.artifact, kv_bytes=1 << 28) as engine:
        prompt = engine.chat_prompt(QUESTION)
        answer = engine.generate(prompt, temperature=0.0, max_tokens=24)
        together = engine.generate_all([prompt] * 9, temperature=0.0, max_tokens=24)
    tokens = list(answer.token_ids)
    assert all(list(each.token_ids) == tokens for each in together)
    expected = logits(smollm2.program, np.array([*prompt, *tokens[:-1]]))[0][len(prompt) - 1 :]
    chosen = np.take_along_axis(expected, np.array(tokens)[:, None], axis=-1)[:, 0]
    # Rounding to f16 may turn a choice between two that are nearly alike, and no other.
    assert (expected.max(axis=-1) - chosen < 0.02 * np.abs(expected).max()).all()
