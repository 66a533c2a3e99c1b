"""Every exact pass computes what the program before it computed; files, names and classes agree."""

from pathlib import Path

import pytest

from tests.passes.graphs import FAMILIES, agree, decoder, decoder_feeds
from tokc.ir.rewrite import collect_remarks
from tokc.ir.verify import verify
from tokc.passes.eliminate_dead_code import EliminateDeadCode
from tokc.passes.fold_constants import FoldConstants
from tokc.passes.fuse_add_rms_norm import FuseAddRmsNorm
from tokc.passes.fuse_attention import FuseAttention
from tokc.passes.fuse_gate_up import FuseGateUp
from tokc.passes.fuse_linear import FuseLinear
from tokc.passes.fuse_qkv import FuseQkv
from tokc.passes.table import PASSES

ORDER = (FoldConstants, EliminateDeadCode, FuseLinear, FuseAttention, FuseQkv, FuseGateUp, FuseAddRmsNorm)
FUSED = {"Linear": 9, "Attention": 2, "Split": 2, "GatedActivation": 2, "AddRmsNorm": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_fusing_keeps_every_output_of_a_decoder(family: str) -> None:
    before = decoder(family)
    feeds = decoder_feeds(before)
    with collect_remarks() as missed:
        for kind in ORDER:
            after = kind().run(before)
            if after is not before:
                verify(after)
                agree(before, after, feeds)
            assert kind().run(after) is after, f"{kind.name} changes its own result"
            before = after
    assert [str(one) for one in missed] == []
    ops = [node.op_type for node in before.graph]
    assert {name: ops.count(name) for name in FUSED} == FUSED
    assert not {"MatMul", "Softmax", "Expand", "Sigmoid"} & set(ops)


def test_passes_may_run_alone_in_any_order() -> None:
    program = decoder("llama")
    feeds = decoder_feeds(program, past=0)
    for kind in reversed(ORDER):
        agree(program, kind().run(program), feeds)
    after = program
    for kind in reversed(ORDER):
        after = kind().run(after)
    verify(after)
    agree(program, after, feeds)


def test_a_pass_leaves_its_input_as_it_was() -> None:
    program = decoder("llama")
    nodes = [node.op_type for node in program.graph]
    names = sorted(program.graph.initializers)
    FuseLinear().run(program)
    assert [node.op_type for node in program.graph] == nodes
    assert sorted(program.graph.initializers) == names


def test_files_names_and_classes_agree() -> None:
    folder = Path(__file__).parents[2] / "passes"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "table"}
    assert files == {one.name.replace("-", "_") for one in PASSES}
    for one in PASSES:
        assert one.__module__ == f"tokc.passes.{one.name.replace('-', '_')}"
        assert one.__name__ == "".join(word.capitalize() for word in one.name.split("-"))
