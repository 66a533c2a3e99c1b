"""The executor on JAX: batches padded to buckets, a tiny model end to end, and what it refuses."""

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.runtime.hash_model import byte_tokenizer
from tests.tiny_models import tiny_folder
from tokc import compiler
from tokc.errors import ArtifactRefused, RequestRefused
from tokc.ir.program import Program
from tokc.quality.divergence import logits
from tokc.runtime.artifact import Artifact
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch
from tokc.runtime.executors.table import executor_for
from tokc.runtime.executors.xla import Bucket, XlaExecutor, padded
from tokc.targets.base import Precision

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> compiler.Build:
    """Return a tiny Llama with int4 weights and an f32 cache, so that little is rounded."""
    folder = tmp_path_factory.mktemp("xla")
    model = tiny_folder("llama", folder / "model", num_hidden_layers=2)
    request = compiler.Request(model, target="xla:cpu", precision=Precision("int4", 32, "f32"), check=False)
    return compiler.build(request, folder / "tiny.tokc")


@pytest.fixture(scope="module")
def executor(built: compiler.Build) -> Iterator[XlaExecutor]:
    opened = XlaExecutor.open(Artifact.open(built.artifact))
    yield opened
    opened.close()


def batch(**arrays: Any) -> Batch:
    return Batch(**{name: np.asarray(value, np.int32) for name, value in arrays.items()})


def test_a_batch_is_put_in_order_and_padded() -> None:
    """Sequences 5 and 2 interleaved become 1 and 0, each one's tokens together."""
    made = padded(
        batch(
            input_ids=[10, 20, 11, 21],
            positions=[7, 0, 8, 1],
            sequences=[5, 2, 5, 2],
            block_tables=np.arange(12).reshape(6, 2),
            logit_rows=[2, 3],
        ),
        Bucket(6, 3, ""),
        4,
    )
    assert made.input_ids.tolist() == [20, 21, 10, 11, 0, 0]
    assert made.positions.tolist() == [0, 1, 7, 8, -1, -1]
    assert made.sequences.tolist() == [0, 0, 1, 1, 0, 0]
    assert made.block_tables[:2].tolist() == [[4, 5, 0, 0], [10, 11, 0, 0]]
    assert made.logit_rows.tolist() == [3, 1, 0]


def test_prefill_and_decode_of_two_sequences_answer_as_the_program(
    built: compiler.Build, executor: XlaExecutor
) -> None:
    ids = np.random.default_rng(0).integers(0, 96, (2, 21))
    expected = logits(built.program, ids, cached_from=17)
    tables = np.random.default_rng(1).permutation(executor.num_pages)[:4].reshape(2, 2).astype(np.int32)
    found = []
    for start, end in [(0, 9), (9, 17), (17, 18), (18, 19), (19, 20), (20, 21)]:
        positions = np.tile(np.arange(start, end), 2)
        step = batch(
            input_ids=ids[:, start:end].reshape(-1),
            positions=positions,
            sequences=np.repeat([0, 1], end - start),
            block_tables=tables,
            logit_rows=np.arange(len(positions)),
        )
        found.append(executor.step(step).reshape(2, end - start, -1).copy())
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-4 * np.abs(expected).max())


def test_padding_leaves_every_page_but_its_own_as_it_was(executor: XlaExecutor) -> None:
    before = [np.array(layer[0]) for layer in executor._caches]
    step = batch(
        input_ids=[1, 2, 3],
        positions=[0, 1, 2],
        sequences=[0, 0, 0],
        block_tables=[[4]],
        logit_rows=[2],
    )
    assert executor.bucket_of(step).tokens == 16
    executor.step(step)
    for old, layer in zip(before, executor._caches, strict=True):
        new = np.asarray(layer[0])
        changed = {int(page) for page in np.nonzero((old != new).any(axis=(1, 2, 3)))[0]}
        assert changed <= {4, executor.num_pages}
        assert np.array_equal(old[4, 3:], new[4, 3:]), "of its own page, only the slots of the tokens"


def greedy(program: Program, prompt: list[int], count: int) -> list[int]:
    """Return the tokens that a program chooses, all computed anew for each."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(program, [tokens])[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_the_engine_generates_the_tokens_of_the_program(built: compiler.Build) -> None:
    prompts = [[5, 17, 33, 80], [9, 9, 41]]
    executor = executor_for(Artifact.open(built.artifact), kv_bytes=1 << 20)
    with Engine(executor, byte_tokenizer()) as engine:
        found = engine.generate_all(prompts, max_tokens=6, ignore_eos=True, temperature=0.0)
    assert [list(one.token_ids) for one in found] == [greedy(built.program, each, 6) for each in prompts]


@pytest.mark.parametrize(
    ("tokens", "seqs", "rows", "bucket"),
    [
        (1, 1, 1, (1, 1)),
        (2, 1, 1, (16, 1)),
        (16, 16, 16, (16, 16)),
        (12, 2, 12, (16, 16)),
        (90, 2, 2, (512, 64)),
    ],
)
def test_the_smallest_bucket_is_chosen(
    executor: XlaExecutor, tokens: int, seqs: int, rows: int, bucket: tuple[int, int]
) -> None:
    step = batch(
        input_ids=np.zeros(tokens),
        positions=np.zeros(tokens),
        sequences=np.arange(tokens) % seqs,
        block_tables=np.zeros((seqs, 1)),
        logit_rows=np.arange(rows),
    )
    assert executor.bucket_of(step)[:2] == bucket


def test_too_large_a_step_is_refused(executor: XlaExecutor) -> None:
    step = batch(
        input_ids=np.zeros(513),
        positions=np.zeros(513),
        sequences=np.zeros(513),
        block_tables=[[0]],
        logit_rows=[0],
    )
    with pytest.raises(RequestRefused, match="513 tokens"):
        executor.step(step)


def test_a_cache_without_room_for_a_page_is_refused(built: compiler.Build) -> None:
    with pytest.raises(RequestRefused, match="holds no page"):
        XlaExecutor.open(Artifact.open(built.artifact), kv_bytes=10)


def test_without_jax_the_extra_is_named(built: compiler.Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_jax(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "jax":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_jax)
    with pytest.raises(ArtifactRefused, match="JAX") as refused:
        executor_for(Artifact.open(built.artifact))
    assert "tokc-compiler[xla]" in str(refused.value)


def test_an_artifact_for_more_devices_is_refused(built: compiler.Build, tmp_path: Path) -> None:
    index = json.loads((built.artifact / "kernels" / "xla.json").read_text())
    artifact = Artifact.open(built.artifact, verify=False)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "xla.json").write_text(json.dumps({**index, "chips": 99}))
    with pytest.raises(ArtifactRefused, match="99"):
        XlaExecutor.open(Artifact(tmp_path, artifact.manifest))


def test_a_tpus_artifact_is_refused_where_there_is_none(built: compiler.Build, tmp_path: Path) -> None:
    index = json.loads((built.artifact / "kernels" / "xla.json").read_text())
    artifact = Artifact.open(built.artifact, verify=False)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "xla.json").write_text(json.dumps({**index, "platform": "tpu"}))
    with pytest.raises(ArtifactRefused, match="1 'tpu' devices, this machine has 0"):
        XlaExecutor.open(Artifact(tmp_path, artifact.manifest))
