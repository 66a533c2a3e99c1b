"""fold-constants before and after."""

from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.passes.fold_constants import FoldConstants


def test_what_depends_on_constants_only_is_computed() -> None:
    before = program("""g (float[s,8] x) => (float[s,8] y) <int64[2] d = {2, 3}> {
        two = Constant <value_float = 2.0> ()
        four = Mul (two, two)
        n = Cast <to = 1> (d)
        m = ReduceSum <keepdims = 0> (n)
        z = Add (x, four)
        y = Add (z, m)
    }""")
    after = FoldConstants().run(before)
    assert body(after) == snapshot("""\
g (float[s,8] x) => (float[s,8] y) \n\
   <float four =  {4}, float m =  {5}>
{
   z = Add (x, four)
   y = Add (z, m)
}\
""")
    agree(before, after, {"x": random(3, 8)})


def test_weights_are_left_as_they_are_stored() -> None:
    before = program("""g (float[s,8] x) => (float[s,4] y) <float[4,8] w> {
        t = Transpose <perm = [1, 0]> (w)
        y = MatMul (x, t)
    }""")
    assert FoldConstants().run(before) is before


def test_vectors_over_the_limit_are_left_alone() -> None:
    before = program("""g (float[8] x) => (float[8] y) <float[8] w> {
        v = Neg (w)
        y = Add (x, v)
    }""")
    assert FoldConstants(limit=4).run(before) is before
    assert len(list(FoldConstants().run(before).graph)) == 1
