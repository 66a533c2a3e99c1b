"""fuse-gate-up before and after."""

import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.ir.rewrite import collect_remarks
from tokc.passes.fuse_gate_up import FuseGateUp

SILU = """g (float[s,8] x) => (float[s,4] y) <float[4,8] "gate_proj.weight", float[4,8] "up_proj.weight"> {
    g = tokc.Linear (x, "gate_proj.weight")
    u = tokc.Linear (x, "up_proj.weight")
    h = Sigmoid (g)
    a = Mul (g, h)
    y = Mul (a, u)
}"""
GELU = SILU.replace("h = Sigmoid (g)", 'a = Gelu <approximate = "tanh"> (g)').replace("a = Mul (g, h)", "")


def test_a_silu_gate_becomes_a_gated_activation() -> None:
    before = program(SILU)
    after = FuseGateUp().run(before)
    assert body(after) == snapshot("""\
g (float[s,8] x) => (float[s,4] y) \n\
   <float[8,8] "gate_up_proj.weight">
{
   [node_Linear_0] "gate_up_proj.out" = tokc.Linear (x, "gate_up_proj.weight")
   [node_GatedActivation_1] y = tokc.GatedActivation <activation: string = "silu"> ("gate_up_proj.out")
}\
""")
    agree(before, after, {"x": random(3, 8)})


def test_the_order_of_factors_does_not_matter() -> None:
    before = program(SILU.replace("(g, h)", "(h, g)").replace("(a, u)", "(u, a)"))
    after = FuseGateUp().run(before)
    assert [node.op_type for node in after.graph] == ["Linear", "GatedActivation"]
    agree(before, after, {"x": random(3, 8)})


def test_a_gelu_gate_becomes_a_gated_activation() -> None:
    before = program(GELU)
    after = FuseGateUp().run(before)
    assert body(after) == snapshot("""\
g (float[s,8] x) => (float[s,4] y) \n\
   <float[8,8] "gate_up_proj.weight">
{
   [node_Linear_0] "gate_up_proj.out" = tokc.Linear (x, "gate_up_proj.weight")
   [node_GatedActivation_1] y = tokc.GatedActivation <activation: string = "gelu_tanh"> ("gate_up_proj.out")
}\
""")
    agree(before, after, {"x": random(3, 8)})


@pytest.mark.parametrize(
    "text",
    [
        GELU.replace('"tanh"', '"none"'),
        SILU.replace("Mul (g, h)", "Mul (u, h)"),
        SILU.replace("y = Mul", "y = Add"),
    ],
)
def test_what_is_no_gate_is_left_alone(text: str) -> None:
    before = program(text)
    assert FuseGateUp().run(before) is before


def test_an_up_that_has_other_readers_is_left_alone_and_said_why() -> None:
    before = program(
        SILU.replace("float[s,4] y", "float[s,4] y, float[s,4] z").replace(
            "    y =", "    z = Neg (u)\n    y ="
        )
    )
    with collect_remarks() as missed:
        assert FuseGateUp().run(before) is before
    assert "has other readers" in missed[0].reason
