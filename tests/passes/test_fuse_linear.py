"""fuse-linear before and after."""

from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.ir.rewrite import collect_remarks
from tokc.passes.fuse_linear import FuseLinear


def test_a_product_with_a_transposed_weight_and_its_bias_become_one_linear() -> None:
    before = program("""g (float[b,s,8] x) => (float[b,s,4] y) <float[4,8] w, float[4] bias> {
        t = Transpose <perm = [1, 0]> (w)
        p = MatMul (x, t)
        y = Add (p, bias)
    }""")
    after = FuseLinear().run(before)
    assert body(after) == snapshot("""\
g (float[b,s,8] x) => (float[b,s,4] y) \n\
   <float[4,8] w, float[4] bias>
{
   [node_Linear_0] y = tokc.Linear (x, w, bias)
}\
""")
    agree(before, after, {"x": random(2, 3, 8)})


def test_a_weight_on_a_grid_stays_on_it() -> None:
    before = program("""g (float[s,64] x) => (float[s,4] y) <uint4[4,64] "w.q", float16[4,2] "w.scale"> {
        w = tokc.BlockDequantize <zero_point = 8> ("w.q", "w.scale")
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul (x, t)
    }""")
    after = FuseLinear().run(before)
    assert body(after) == snapshot("""\
g (float[s,64] x) => (float[s,4] y) \n\
   <uint4[4,64] "w.q", float16[4,2] "w.scale">
{
   w = tokc.BlockDequantize <zero_point: int = 8> ("w.q", "w.scale")
   [node_Linear_0] y = tokc.Linear (x, w)
}\
""")
    agree(before, after, {"x": random(3, 64)}, 1e-4)


def test_the_transposed_weight_stays_where_another_node_reads_it() -> None:
    before = program("""g (float[s,8] x) => (float[s,4] y, float[8,4] z) <float[4,8] w> {
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul (x, t)
        z = Neg (t)
    }""")
    after = FuseLinear().run(before)
    assert [node.op_type for node in after.graph] == ["Transpose", "Linear", "Neg"]
    agree(before, after, {"x": random(3, 8)})


def test_an_added_matrix_is_no_bias() -> None:
    before = program("""g (float[s,8] x, float[s,4] r) => (float[s,4] y) <float[4,8] w> {
        t = Transpose <perm = [1, 0]> (w)
        p = MatMul (x, t)
        y = Add (p, r)
    }""")
    assert [node.op_type for node in FuseLinear().run(before).graph] == ["Linear", "Add"]


def test_a_product_of_two_computed_values_is_left_alone() -> None:
    before = program("""g (float[4,8] x, float[4,8] z) => (float[4,4] y) {
        t = Transpose <perm = [1, 0]> (z)
        y = MatMul (x, t)
    }""")
    with collect_remarks() as missed:
        assert FuseLinear().run(before) is before
    assert missed == []
