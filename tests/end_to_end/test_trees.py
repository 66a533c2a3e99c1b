"""A step with trees on a CPU: every node has the bits of its path alone, and an accepted path is moved."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.heads_of_drafts import eagle_heads, saved
from tests.targets.cpu.trees import random_tree
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build
from tokc.errors import RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.base import Batch, refuse_trees
from tokc.runtime.executors.cpu import CpuExecutor
from tokc.runtime.executors.drafting import DraftRows
from tokc.runtime.speculation.tree import TokenTree

VOCAB, PAGE = 96, 16
PASSES = (
    "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,fuse-add-rms-norm,"
    "kv-layout{dtype=int8},eliminate-dead-code,admit-trees"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return tiny_folder(
        "mistral", tmp_path_factory.mktemp("models") / "mistral", sliding_window=70, head_dim=32
    )


@pytest.fixture(scope="module")
def executor(model: Path) -> Iterator[CpuExecutor]:
    """Return an artifact with trees, a draft, an int8 cache and a window of 70; its build compares them."""
    heads = saved(eagle_heads(64, (128, 64)), model.parent / "heads.safetensors")
    passes = f"attach-draft{{heads={heads}}},{PASSES}"
    made = build(Request(model, passes=passes), model.parent / "trees.tokc")
    executor = CpuExecutor.open(Artifact.open(made.artifact), threads=2, kv_bytes=8 << 20)
    yield executor
    executor.close()


class Case:
    """Sequences with trees at their ends; each has pages of its own, in an order of its own."""

    def __init__(self, executor: CpuExecutor, lengths: list[int], nodes: int, seed: int) -> None:
        self.executor, rng = executor, np.random.default_rng(seed)
        self.prompts = [rng.integers(0, VOCAB, length, dtype=np.int32) for length in lengths]
        self.trees = [random_tree(rng, nodes) for _ in lengths]
        tokens = [rng.integers(0, VOCAB, nodes).tolist() for _ in lengths]
        pairs = zip(tokens, self.trees, strict=True)
        self.trees = [TokenTree(tuple(ids), tree.parents) for ids, tree in pairs]
        self.tables = rng.permutation(8 * len(lengths)).astype(np.int32).reshape(len(lengths), 8)

    def chain(self, sequence: int, tokens: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the logits of the last two tokens, at positions from `first` on, in a step without trees."""
        at = np.arange(first, first + len(tokens), dtype=np.int32)
        table = self.tables[sequence : sequence + 1]
        batch = Batch(tokens, at, np.zeros_like(at), table, np.arange(len(at), dtype=np.int32)[-2:])
        return self.executor.step(batch).copy()

    def verified(self) -> list[np.ndarray]:
        """Return logits [1 + nodes, vocab] of each sequence, of its last token and its tree, in one step."""
        fields: list[list[np.ndarray]] = [[], [], [], [], []]
        for index, (prompt, tree) in enumerate(zip(self.prompts, self.trees, strict=True)):
            self.chain(index, prompt[:-1])
            last, rows = len(prompt) - 1, tree.rows(len(prompt))
            one = (prompt[-1:], [last], [last], [0])
            for field, root, nodes in zip(fields, one, rows, strict=False):
                field.append(np.concatenate([root, nodes]).astype(np.int32))
            fields[4].append(np.full(1 + len(tree), index, np.int32))
        ids, positions, entries, ancestors, sequences = map(np.concatenate, fields)
        rows = np.arange(len(ids), dtype=np.int32)
        found = self.executor.step(Batch(ids, positions, sequences, self.tables, rows, entries, ancestors))
        return list(found.copy().reshape(len(self.prompts), -1, VOCAB))

    def entries(self, sequence: int, entries: list[int]) -> np.ndarray:
        """Return where entries of a sequence lie in the cache."""
        at = np.array(entries, np.int32)
        return self.tables[sequence, at // PAGE] * PAGE + at % PAGE


@pytest.mark.parametrize(("lengths", "nodes"), [([3], 7), ([60, 21, 100], 5), ([55, 63], 16)])
def test_nodes_answer_as_their_paths_and_an_accepted_path_is_a_chain_once_moved(
    executor: CpuExecutor, lengths: list[int], nodes: int
) -> None:
    case = Case(executor, lengths, nodes, len(lengths))
    found = case.verified()
    accepted = [max(range(nodes), key=lambda node: len(tree.path(node)) * 100 + node) for tree in case.trees]
    moves = [
        tree.moves(node, len(p)) for tree, node, p in zip(case.trees, accepted, case.prompts, strict=True)
    ]
    assert any(sources for sources, _ in moves), "some path has to be moved"
    assert executor.trees is not None
    for part in zip(
        *(map(case.entries, range(len(moves)), ends) for ends in zip(*moves, strict=True)), strict=True
    ):
        executor.trees.move(*part)
    following = np.array([5, 17], np.int32)
    after = []
    for index, (tree, node) in enumerate(zip(case.trees, accepted, strict=True)):
        after.append(case.chain(index, following, len(case.prompts[index]) + len(tree.path(node))))
    for index, (prompt, tree) in enumerate(zip(case.prompts, case.trees, strict=True)):
        assert found[index][0].tobytes() == case.chain(index, prompt)[-1].tobytes()
        for node in range(nodes):
            path = np.array([tree.tokens[one] for one in tree.path(node)], np.int32)
            alone = case.chain(index, np.concatenate([prompt, path]))[-1]
            assert found[index][1 + node].tobytes() == alone.tobytes(), f"node {node}"
        path = np.array([tree.tokens[one] for one in tree.path(accepted[index])], np.int32)
        whole = case.chain(index, np.concatenate([prompt, path, following]))
        assert after[index].tobytes() == whole[-2:].tobytes()


def test_a_draft_goes_on_from_every_node_as_from_its_path(executor: CpuExecutor) -> None:
    assert executor.draft is not None
    rng, first = np.random.default_rng(9), 61
    tree, table = random_tree(rng, 14), np.array([[4, 1, 7, 2, 0]], np.int32)
    prompt = rng.standard_normal((first, 64)).astype(np.float32)
    features = rng.standard_normal((len(tree), 64)).astype(np.float32)

    def drafted(ids: np.ndarray, given: np.ndarray, start: int) -> DraftRows:
        at = np.arange(len(ids), dtype=np.int32)
        assert executor.draft is not None
        return executor.draft.step(Batch(ids, start + at, np.zeros_like(at), table, at[-1:]), given)

    rows, every = tree.rows(first), np.arange(len(tree), dtype=np.int32)
    ids = np.arange(first, dtype=np.int32)
    drafted(ids, prompt, 0)
    batch = Batch(rows.input_ids, rows.positions, 0 * every, table, every, rows.entries, rows.ancestors)
    found = [None if part is None else part.copy() for part in executor.draft.step(batch, features)]
    for node in range(len(tree)):
        path = tree.path(node)
        alone = drafted(rows.input_ids[path], features[path], first)
        for whole, one in zip(found, alone, strict=True):
            assert whole is not None
            assert one is not None
            assert whole[node].tobytes() == one[0].tobytes(), f"node {node}"


def test_an_artifact_without_trees_refuses_a_step_with_some() -> None:
    one = np.zeros(1, np.int32)
    with pytest.raises(RequestRefused, match="steps hold no trees") as refused:
        refuse_trees(Batch(one, one, one, one[None], one, one, one))
    assert "admit-trees" in str(refused.value.hint)
    refuse_trees(Batch(one, one, one, one[None], one))
