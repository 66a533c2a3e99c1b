"""On the real int4 model, a sequence's logits are the same bits however it is computed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import BuiltModel
from tokc.runtime.artifact import Artifact
from tokc.runtime.core import Core
from tokc.runtime.engine import Engine
from tokc.runtime.executors.base import Batch, LogitBlocks
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.sequence import SamplingOptions

PAGES = 96
DECODED = 3
Executors = dict[int, CpuExecutor]


@dataclass(frozen=True)
class Way:
    """How to compute a sequence: sizes of its prefill chunks, others beside it, page order, and threads."""

    chunks: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    threads: int = 2
    seed: int | None = None


@pytest.fixture(scope="module")
def executors(smollm2_int4: BuiltModel) -> Iterator[Executors]:
    artifact = Artifact.open(smollm2_int4.path)
    by_threads = {n: CpuExecutor.open(artifact, threads=n, kv_bytes=64 << 20) for n in (1, 2)}
    yield by_threads
    for executor in by_threads.values():
        executor.close()


def logits_of(executor: CpuExecutor, tokens: np.ndarray, way: Way) -> np.ndarray:
    """Return the logits of the prompt's last token and of each token decoded after it."""
    random = np.random.default_rng(way.seed or 0)
    prompt = len(tokens) - DECODED
    cuts = [cut for cut in np.cumsum(way.chunks).tolist() if cut < prompt]
    steps = np.diff([0, *cuts, *range(prompt, len(tokens) + 1)]).tolist()
    blocks = -(-max(len(tokens), 1 + max(way.others, default=0) + len(steps)) // executor.page_size)
    tables = np.arange((1 + len(way.others)) * blocks, dtype=np.int32)
    if way.seed is not None:
        tables = random.permutation(PAGES)[: len(tables)].astype(np.int32)
    assert len(tables) <= PAGES <= executor.num_pages
    tables = tables.reshape(-1, blocks)
    place = len(way.others) // 2 if way.seed else 0
    done, found = 0, []
    for number, count in enumerate(steps):
        rows = [(place, np.arange(done, done + count), tokens[done : done + count])]
        for index, length in enumerate(way.others):
            first, last = (0, length) if number == 0 else (length + number - 1, length + number)
            strange = random.integers(0, executor.vocab_size, last - first, dtype=np.int32)
            rows.append((index + (index >= place), np.arange(first, last), strange))
        rows.sort(key=lambda row: row[0])
        found.append(run_step(executor, tables, rows)[place].copy())
        done += count
    return np.stack(found[-DECODED - 1 :])


def run_step(
    executor: CpuExecutor, tables: np.ndarray, rows: list[tuple[int, np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Run (sequence, positions, tokens) rows in one step; returns the logits of each row's last token."""
    sequences = np.concatenate([np.full(len(ids), sequence) for sequence, _, ids in rows])
    positions = np.concatenate([at for _, at, _ in rows])
    ids = np.concatenate([ids for _, _, ids in rows])
    last = np.cumsum([len(ids) for _, _, ids in rows]) - 1
    arrays = (part.astype(np.int32) for part in (ids, positions, sequences))
    return executor.step(Batch(*arrays, block_tables=tables, logit_rows=last.astype(np.int32)))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    length=st.integers(DECODED + 1, 150),
    chunks=st.lists(st.integers(1, 70), max_size=5).map(tuple),
    others=st.lists(st.integers(1, 60), max_size=6).map(tuple),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_logits_do_not_depend_on_batch_chunks_pages_or_threads(
    executors: Executors,
    length: int,
    chunks: tuple[int, ...],
    others: tuple[int, ...],
    threads: int,
    seed: int,
) -> None:
    tokens = np.random.default_rng(seed).integers(0, 49000, length, dtype=np.int32)
    alone = logits_of(executors[2], tokens, Way())
    way = Way(chunks, others, threads, seed)
    np.testing.assert_array_equal(logits_of(executors[threads], tokens, way), alone, err_msg=str(way))


def test_one_token_at_a_time_is_one_step(executors: Executors) -> None:
    tokens = np.random.default_rng(0).integers(0, 49000, 40, dtype=np.int32)
    alone = logits_of(executors[2], tokens, Way())
    way = replace(Way(), chunks=(1,) * 37, threads=1)
    np.testing.assert_array_equal(logits_of(executors[1], tokens, way), alone)


PROMPTS = [
    "You are a helpful assistant who answers in one short line. " * 2 + question
    for question in (
        "What is the sea?",
        "What is a compiler?",
        "Name a river.",
        "Count to ten.",
        "Why is it so?",
    )
]


def answers(engine: Engine, core: Core) -> list[tuple[object, ...]]:
    """Return tokens and log probabilities of all prompts, run together."""
    fresh = Engine(engine.executor, engine.tokenizer, core=core)
    found = fresh.generate_all(PROMPTS, max_tokens=24, ignore_eos=True, logprobs=2)
    return [(result.token_ids, result.logprobs) for result in found]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 40, "min_p": 0.05}], ids=str)
def test_drawn_tokens_depend_neither_on_the_batch_nor_on_who_finds_the_sums(
    smollm2_int4: BuiltModel, monkeypatch: pytest.MonkeyPatch, options: SamplingOptions
) -> None:
    """Alone without the kernels' sums of each block of logits, and together with them."""
    drawn: SamplingOptions = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.9, "seed": 7, **options}
    with Engine.open(smollm2_int4.path) as engine:
        together = [result.token_ids for result in engine.generate_all(PROMPTS, **drawn)]
        assert isinstance(engine.executor.blocks, LogitBlocks)
        monkeypatch.setattr(CpuExecutor, "blocks", None)
        assert [engine.generate(prompt, **drawn).token_ids for prompt in PROMPTS] == together


def test_prefix_cache_and_preemption_change_no_answer(smollm2_int4: BuiltModel) -> None:
    with Engine.open(smollm2_int4.path) as roomy:
        plain = answers(roomy, Core(roomy.executor, prefix_cache=False))
        alone = [roomy.generate(prompt, max_tokens=24, ignore_eos=True).token_ids for prompt in PROMPTS]
        cached = Core(roomy.executor, prefix_cache=True)
        first, again = answers(roomy, cached), answers(roomy, cached)
        assert cached.counters.cached_tokens > 0
        page_bytes = roomy.executor.kv_bytes_per_page
    assert first == again == plain
    assert [ids for ids, _ in plain] == alone
    with Engine.open(smollm2_int4.path, kv_bytes=9 * page_bytes) as tight:
        core = Core(tight.executor, prefix_cache=False)
        assert answers(tight, core) == plain
        assert core.gauges.preemptions > 0
