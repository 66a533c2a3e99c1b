"""fuse-add-rms-norm before and after."""

import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.passes.fuse_add_rms_norm import FuseAddRmsNorm

TEXT = """g (float[s,8] x, float[s,8] r) => (float[s,8] h, float[s,8] y) <float[8] w> {
    h = Add (x, r)
    y = RMSNormalization <axis = -1, epsilon = 1e-6> (h, w)
}"""


def test_a_norm_of_a_sum_is_fused_with_it() -> None:
    before = program(TEXT)
    after = FuseAddRmsNorm().run(before)
    assert body(after) == snapshot("""\
g (float[s,8] x, float[s,8] r) => (float[s,8] h, float[s,8] y) \n\
   <float[8] w>
{
   [node_AddRmsNorm_0] h, y = tokc.AddRmsNorm <epsilon: float = 1e-06> (x, r, w)
}\
""")
    agree(before, after, {"x": random(3, 8), "r": random(3, 8)})


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("Add (x, r)", "Mul (x, r)"),
        TEXT.replace("Add (x, r)", "Add (x, w)"),
        TEXT.replace("float[s,8] r)", "float[1,8] r)"),
        TEXT.replace("axis = -1", "axis = 0"),
    ],
)
def test_what_is_no_norm_of_a_sum_is_left_alone(text: str) -> None:
    before = program(text)
    assert FuseAddRmsNorm().run(before) is before
