"""Speculation on compiled artifacts: whatever drafts, the tokens are those without drafts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.heads_of_drafts import eagle_heads, medusa_heads, saved
from tests.runtime.hash_model import byte_tokenizer
from tests.runtime.speculation.drafting import Eager
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.errors import UnknownOption
from tokc.runtime.artifact import Artifact
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.sequence import Result, SamplingParams
from tokc.runtime.speculation.config import SpeculativeConfig
from tokc.runtime.speculation.draft_model import DraftModelDrafter
from tokc.runtime.speculation.drafter import Drafter
from tokc.runtime.speculation.eagle import EagleDrafter
from tokc.runtime.speculation.medusa import MedusaDrafter
from tokc.runtime.speculation.table import speculation_of
from tokc.targets.base import pass_list

pytestmark = pytest.mark.slow  # two builds

SIZES = {
    "hidden_size": 64,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
HEADS = {
    "eagle": eagle_heads(64, (128, 64), vocabulary=np.arange(0, 96, 2)),
    "medusa": medusa_heads(64, 3),
}
PROMPTS = [list(range(3, 3 + length)) for length in (5, 40, 40, 23)]
PARAMS: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0, "top_p": 0.9})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("speculation")
    folder, found = tiny_folder("llama", path / "model", **SIZES), {}
    for kind, tensors in HEADS.items():
        heads = saved(tensors, path / f"{kind}.safetensors")
        passes = f"attach-draft{{heads={heads}}},{pass_list(precision('int4', 'f16'))},admit-trees"
        request = Request(folder, passes=passes, context=128, check=False)
        found[kind] = build(request, path / f"{kind}.tokc").artifact
    return found


def executor_of(path: Path) -> CpuExecutor:
    return CpuExecutor.open(Artifact.open(path), threads=2, kv_bytes=1 << 19)


def answers(
    executor: CpuExecutor, drafter: Drafter | None, *, trees: bool = False, **options: Any
) -> tuple[list[Result], Engine]:
    speculation = None if drafter is None else Eager(drafter, most=4, trees=trees)
    core = Core(executor, speculation=speculation, token_budget=24)
    engine = Engine(executor, byte_tokenizer(), core=core)
    requests = [
        engine.request(prompt, SamplingParams(max_tokens=24, seed=seed, **options))
        for seed, prompt in enumerate(PROMPTS)
    ]
    for request in requests:
        engine._loop.submit(request)
    while not all(request.done for request in requests):
        engine.step()
    return [request.result() for request in requests], engine


@pytest.fixture(params=["eagle", "medusa", "draft_model"])
def drafting(
    request: pytest.FixtureRequest, artifacts: dict[str, Path]
) -> Iterator[tuple[CpuExecutor, Drafter]]:
    kind = request.param
    executor = executor_of(artifacts["medusa" if kind == "medusa" else "eagle"])
    drafter: Drafter
    if kind == "draft_model":
        drafter = DraftModelDrafter(executor_of(artifacts["eagle"]), vocab_size=executor.vocab_size)
    else:
        assert executor.draft is not None
        drafter = (EagleDrafter if kind == "eagle" else MedusaDrafter)(executor, executor.draft)
    yield executor, drafter
    drafter.close()
    executor.close()


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("params", PARAMS)
def test_tokens_are_those_without_drafts(
    drafting: tuple[CpuExecutor, Drafter], params: dict[str, Any], *, trees: bool
) -> None:
    executor, drafter = drafting
    plain, _ = answers(executor, None, **params)
    drafted, engine = answers(executor, drafter, trees=trees, **params)
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    counts = engine.counters.drafts
    assert counts.verified > 50
    if isinstance(drafter, DraftModelDrafter):  # the model itself
        assert sum(counts.accepted_at) > 0.9 * sum(counts.verified_at)


def test_an_artifact_with_heads_drafts_by_itself_and_refuses_others(artifacts: dict[str, Path]) -> None:
    artifact = Artifact.open(artifacts["eagle"])
    executor = executor_of(artifacts["eagle"])
    found = speculation_of(None, artifact, executor, None)
    assert found is not None
    assert isinstance(found.drafter, EagleDrafter)
    assert speculation_of(SpeculativeConfig("none"), artifact, executor, None) is None
    with pytest.raises(UnknownOption, match="'medusa' is not in the artifact, which has heads of 'eagle'"):
        speculation_of(SpeculativeConfig("medusa"), artifact, executor, None)
    executor.close()
