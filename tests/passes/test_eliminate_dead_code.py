"""eliminate-dead-code before and after."""

from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.passes.eliminate_dead_code import EliminateDeadCode


def test_nodes_and_weights_that_no_output_needs_go() -> None:
    before = program("""g (float[s,8] x) => (float[s,8] y) <float[4,8] w> {
        t = Transpose <perm = [1, 0]> (w)
        z = MatMul (x, t)
        y = Neg (x)
    }""")
    after = EliminateDeadCode().run(before)
    assert body(after) == snapshot("""\
g (float[s,8] x) => (float[s,8] y) {
   y = Neg (x)
}\
""")
    agree(before, after, {"x": random(3, 8)})


def test_a_program_without_dead_code_is_left_alone() -> None:
    before = program("g (float[s,8] x) => (float[s,8] y) { y = Neg (x) }")
    assert EliminateDeadCode().run(before) is before
