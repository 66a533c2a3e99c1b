"""fuse-attention before and after."""
# ruff: noqa: E501 (snapshots are what the printer prints)

import numpy as np
import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import agree, body, program, random
from tokc.passes.fuse_attention import FuseAttention

TEXT = """g (int64[b,s] position_ids, float[b,4,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v,
           float[b,2,past,8] past_k, float[b,2,past,8] past_v)
    => (float[b,4,s,8] y, float[b,2,total,8] key, float[b,2,total,8] value)
    <float scale = {0.35}, float low = {-inf}, int64[1] axis = {2}, int64[5] groups = {1, 1, 2, 1, 1},
     int64[4] merged = {0, 4, -1, 8}> {
    key = Concat <axis = 2> (past_k, k)
    value = Concat <axis = 2> (past_v, v)
    mask = tokc.CausalMask (position_ids, key)
    ku = Unsqueeze (key, axis)
    ke = Expand (ku, groups)
    kr = Reshape (ke, merged)
    kt = Transpose <perm = [0, 1, 3, 2]> (kr)
    qk = MatMul (q, kt)
    scores = Mul (qk, scale)
    masked = Where (mask, scores, low)
    p = Softmax <axis = -1> (masked)
    vu = Unsqueeze (value, axis)
    ve = Expand (vu, groups)
    vr = Reshape (ve, merged)
    y = MatMul (p, vr)
}"""
LINES = TEXT.splitlines()
PLAIN = "\n".join(
    line for line in LINES if line.split("=")[0].strip() not in ("ku", "ke", "vu", "ve", "kr", "vr")
)
PLAIN = PLAIN.replace("(kr)", "(key)").replace("(p, vr)", "(p, value)").replace("b,2,", "b,4,")


def feeds(kv_heads: int) -> dict[str, np.ndarray]:
    return {
        "position_ids": np.array([[3, 4], [3, 4]]),
        "q": random(2, 4, 2, 8),
        **{name: random(2, kv_heads, 2, 8) + index for index, name in enumerate("kv")},
        **{name: random(2, kv_heads, 3, 8) + index for index, name in enumerate(("past_k", "past_v"))},
    }


def test_grouped_attention_becomes_one_node() -> None:
    before = program(TEXT)
    after = FuseAttention().run(before)
    assert body(after) == snapshot("""\
g (int64[b,s] position_ids, float[b,4,s,8] q, float[b,2,s,8] k, float[b,2,s,8] v, float[b,2,past,8] past_k, float[b,2,past,8] past_v) => (float[b,4,s,8] y, float[b,2,total,8] key, float[b,2,total,8] value) {
   "key.before" = Concat <axis: int = 2> (past_k, k)
   mask = tokc.CausalMask (position_ids, "key.before")
   [node_Attention_0] y, key, value = Attention <scale: float = 0.35> (q, k, v, mask, past_k, past_v)
}\
""")
    agree(before, after, feeds(2))


def test_attention_without_groups_becomes_one_node() -> None:
    before = program(PLAIN)
    after = FuseAttention().run(before)
    assert [node.op_type for node in after.graph] == ["Concat", "CausalMask", "Attention"]
    agree(before, after, feeds(4))


def test_attention_without_a_scale_has_scale_one() -> None:
    before = program(TEXT.replace("(mask, scores, low)", "(mask, qk, low)"))
    after = FuseAttention().run(before)
    attention = next(node for node in after.graph if node.op_type == "Attention")
    assert attention.attributes.get_float("scale", 0.0) == 1.0
    agree(before, after, feeds(2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Softmax <axis = -1>", "Softmax <axis = 2>"),
        ("low = {-inf}", "low = {-1.0}"),
        ("Where (mask, scores, low)", "Where (mask, low, scores)"),
        ("perm = [0, 1, 3, 2]> (kr)", "perm = [0, 1, 2, 3]> (kr)"),
        ("y = MatMul (p, vr)", "o = Neg (p)\n    y = MatMul (o, vr)"),
        ("value = Concat <axis = 2>", "value = Concat <axis = 1>"),
    ],
)
def test_what_is_not_quite_attention_is_left_alone(old: str, new: str) -> None:
    assert old in TEXT
    before = program(TEXT.replace(old, new))
    assert FuseAttention().run(before) is before
