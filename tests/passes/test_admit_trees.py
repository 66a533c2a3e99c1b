"""Trees in one step: every node answers as its path does alone, and chains are left as they are."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.heads_of_drafts import medusa_heads, saved
from tests.passes.tiny import VOCAB, tiny_program
from tests.targets.cpu.trees import random_tree
from tokc.compiler import Request, prepare
from tokc.errors import PassFailed, VerifyFailed
from tokc.ir.execute import Session
from tokc.ir.program import Program
from tokc.ir.text import parse, render
from tokc.ir.tree_bodies import TREE_NODES
from tokc.ir.verify import verify
from tokc.passes.admit_trees import AdmitTrees
from tokc.passes.kv_layout import KvLayout
from tokc.quality.divergence import divergence, logits
from tokc.quality.running import feeds_of
from tokc.runtime.executors import base
from tokc.runtime.speculation.tree import TokenTree


def with_trees(program: Program) -> Program:
    return AdmitTrees().run(KvLayout(page=4, dtype="f32").run(program))


def answers(session: Session, program: Program, prompt: np.ndarray, tree: TokenTree) -> np.ndarray:
    """Return the logits of the prompt's last token and of each node, computed in one step."""
    rows = tree.rows(len(prompt))
    ids = np.concatenate([prompt, rows.input_ids])
    feeds = feeds_of(program, ids[None].astype(np.int64))
    feeds["positions"] = np.concatenate([feeds["positions"][: len(prompt)], rows.positions])
    feeds["ancestors"][len(prompt) :] = rows.ancestors.view(np.uint32)
    found = session.run(feeds)["logits"].astype(np.float32)
    return found[len(prompt) - 1 :]


@pytest.mark.parametrize("window", [0, 3])
def test_every_node_answers_as_its_path_alone_in_a_dense_cache(window: int) -> None:
    dense = tiny_program(window=window, normed=True)
    program = with_trees(dense)
    rng = np.random.default_rng(window)
    session, reference = Session(program), {}
    for length, nodes in ((1, 6), (7, TREE_NODES)):
        prompt = rng.integers(0, VOCAB, length)
        tree = random_tree(rng, nodes)
        tree = TokenTree(tuple(rng.integers(0, VOCAB, nodes).tolist()), tree.parents)
        found = answers(session, program, prompt, tree)
        for node in (None, *range(nodes)):
            path = np.array([*prompt, *(tree.tokens[one] for one in tree.path(node))])
            reference[node] = logits(dense, path)[0, -1]
            at = 0 if node is None else node + 1
            np.testing.assert_allclose(found[at], reference[node], atol=2e-5)
    assert np.abs(found[1] - found[2]).max() > 1e-3, "nodes answer alike"


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_a_node_past_the_window_of_its_ancestors_forgets_them(seed: int, window: int) -> None:
    dense = tiny_program(window=window)
    rng = np.random.default_rng(seed)
    prompt, parents = rng.integers(0, VOCAB, 3), (None, *range(7))
    chain = TokenTree(tuple(rng.integers(0, VOCAB, 8).tolist()), parents)
    program = with_trees(dense)
    found = answers(Session(program), program, prompt, chain)
    whole = logits(dense, np.array([*prompt, *chain.tokens]))[0, len(prompt) - 1 :]
    np.testing.assert_allclose(found, whole, atol=2e-5)


def test_without_trees_in_the_step_nothing_changes() -> None:
    paged = KvLayout(page=4, dtype="f32").run(tiny_program())
    ids = np.random.default_rng(0).integers(0, VOCAB, (2, 11))
    before, after = logits(paged, ids), logits(AdmitTrees().run(paged), ids, cached_from=6)
    assert divergence(before, after).max_abs_logit_diff < 1e-5


def test_the_ops_have_the_inputs_and_keep_them_as_text() -> None:
    program = with_trees(tiny_program(normed=True))
    verify(program)
    assert [value.name for value in program.graph.inputs][-2:] == ["entries", "ancestors"]
    wants = {"RopeWriteKV": ["k_norm.weight", "entries"], "PagedAttention": ["entries", "ancestors"]}
    for node in program.graph:
        if node.op_type in wants:
            names = [None if value is None else value.name for value in node.inputs]
            assert names[-2:] == wants[node.op_type]
    again = parse(render(program))
    assert render(again) == render(program)
    assert AdmitTrees().run(program) is program


def test_half_of_the_inputs_are_refused() -> None:
    program = with_trees(tiny_program())
    program.graph.inputs.pop()
    for node in program.graph:
        if node.op_type == "PagedAttention":
            node.replace_input_with(9, None)
    with pytest.raises(VerifyFailed, match="promises input 'ancestors'"):
        verify(program)


def test_trained_heads_bring_trees(tmp_path: Path) -> None:
    heads = saved(medusa_heads(64, 2), tmp_path / "heads.safetensors")
    _, pipeline = prepare(Request(tmp_path, heads=heads, speculate="medusa"))
    assert pipeline.passes[-1] == AdmitTrees()
    assert AdmitTrees() not in prepare(Request(tmp_path))[1].passes


def test_a_program_without_pages_is_refused() -> None:
    with pytest.raises(PassFailed, match="no paged cache") as caught:
        AdmitTrees().run(tiny_program())
    assert caught.value.hint == "run kv-layout before admit-trees"


def test_compiler_and_runtime_agree_on_the_size_of_a_tree() -> None:
    assert base.TREE_NODES == TREE_NODES
