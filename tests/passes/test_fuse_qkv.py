"""fuse-qkv before and after."""
# ruff: noqa: E501 (snapshots are what the printer prints)

import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.ir.rewrite import collect_remarks
from tokc.passes.fuse_qkv import FuseQkv

PLAIN = """g (float[b,s,64] x) => (float[b,s,4] q, float[b,s,2] k, float[b,s,2] v)
    <float[4,64] "q_proj.weight", float[2,64] "k_proj.weight", float[2,64] "v_proj.weight",
     float[4] "q_proj.bias", float[2] "k_proj.bias", float[2] "v_proj.bias"> {
    q = tokc.Linear (x, "q_proj.weight", "q_proj.bias")
    k = tokc.Linear (x, "k_proj.weight", "k_proj.bias")
    v = tokc.Linear (x, "v_proj.weight", "v_proj.bias")
}"""
GRID = """g (float[s,64] x) => (float[s,4] q, float[s,2] k, float[s,2] v)
    <uint4[4,64] "q_proj.weight.q", uint4[2,64] "k_proj.weight.q", uint4[2,64] "v_proj.weight.q",
     float16[4,2] "q_proj.weight.scale",
     float16[2,2] "k_proj.weight.scale", float16[2,2] "v_proj.weight.scale",
     float16[4,2] "q_proj.weight.offset",
     float16[2,2] "k_proj.weight.offset", float16[2,2] "v_proj.weight.offset"> {
    wq = tokc.BlockDequantize ("q_proj.weight.q", "q_proj.weight.scale", "q_proj.weight.offset")
    wk = tokc.BlockDequantize ("k_proj.weight.q", "k_proj.weight.scale", "k_proj.weight.offset")
    wv = tokc.BlockDequantize ("v_proj.weight.q", "v_proj.weight.scale", "v_proj.weight.offset")
    q = tokc.Linear (x, wq)
    k = tokc.Linear (x, wk)
    v = tokc.Linear (x, wv)
}"""


def test_three_linears_of_one_value_become_one_and_a_split() -> None:
    before = program(PLAIN)
    after = FuseQkv().run(before)
    assert body(after) == snapshot("""\
g (float[b,s,64] x) => (float[b,s,4] q, float[b,s,2] k, float[b,s,2] v) \n\
   <int64[3] "split.4_2_2" =  {4,2,2}, float[8,64] "qkv_proj.weight", float[8] "qkv_proj.bias">
{
   [node_Linear_0] "qkv_proj.out" = tokc.Linear (x, "qkv_proj.weight", "qkv_proj.bias")
   [node_Split_1] q, k, v = Split <axis: int = -1> ("qkv_proj.out", "split.4_2_2")
}\
""")
    agree(before, after, {"x": random(2, 3, 64)}, 1e-4)


def test_weights_on_one_grid_are_stacked_on_it() -> None:
    before = program(GRID)
    after = FuseQkv().run(before)
    assert body(after) == snapshot("""\
g (float[s,64] x) => (float[s,4] q, float[s,2] k, float[s,2] v) \n\
   <int64[3] "split.4_2_2" =  {4,2,2}, uint4[8,64] "wq+wk+wv.q", float16[8,2] "wq+wk+wv.scale", float16[8,2] "wq+wk+wv.offset">
{
   [node_BlockDequantize_0] "wq+wk+wv" = tokc.BlockDequantize <zero_point: int = 0, block_size: int = 32> ("wq+wk+wv.q", "wq+wk+wv.scale", "wq+wk+wv.offset")
   [node_Linear_1] "wq+wk+wv.out" = tokc.Linear (x, "wq+wk+wv")
   [node_Split_2] q, k, v = Split <axis: int = -1> ("wq+wk+wv.out", "split.4_2_2")
}\
""")
    agree(before, after, {"x": random(3, 64)}, 1e-4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PLAIN.replace(', "k_proj.bias")', ")"), "only some of the three have a bias"),
        (
            GRID.replace("wk = tokc.BlockDequantize", "wk = tokc.BlockDequantize <zero_point = 8>"),
            "different grids",
        ),
        (GRID.replace(', "v_proj.weight.offset")', ")"), "different grids"),
        (GRID.replace("uint4[2,64]", "int8[2,64]"), "different types"),
    ],
)
def test_weights_that_do_not_stack_are_left_alone_and_said_why(text: str, reason: str) -> None:
    before = program(text)
    with collect_remarks() as missed:
        assert FuseQkv().run(before) is before
    assert reason in missed[0].reason


def test_two_linears_of_one_value_are_left_alone() -> None:
    before = program("""g (float[s,8] x) => (float[s,4] y, float[s,4] z) <float[4,8] w> {
        y = tokc.Linear (x, w)
        z = tokc.Linear (x, w)
    }""")
    assert FuseQkv().run(before) is before


def test_stacked_weights_are_read_only_when_asked_for() -> None:
    read = []
    before = program(PLAIN)
    weight = before.graph.initializers["q_proj.weight"]
    lazy = weight.const_value
    assert lazy is not None
    import onnx_ir as ir

    weight.const_value = ir.LazyTensor(
        lambda: read.append(1) or lazy, dtype=lazy.dtype, shape=lazy.shape, name="q_proj.weight"
    )
    after = FuseQkv().run(before)
    assert not read
    stacked = after.graph.initializers["qkv_proj.weight"].const_value
    assert stacked is not None
    assert stacked.numpy().shape == (8, 64)
    assert read
