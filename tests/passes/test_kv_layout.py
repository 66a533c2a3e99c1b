"""The step from dense batches to ragged pages."""

import numpy as np
import onnx_ir as ir
import pytest
from inline_snapshot import snapshot

from tests.passes.tiny import CONFIG, VOCAB, tiny_program
from tokc.compiler import kv_bytes_per_token
from tokc.errors import PassFailed
from tokc.ir.ops import node_cost
from tokc.ir.program import KvLayout as Layout
from tokc.passes.kv_layout import KvLayout
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.quality.divergence import divergence, logits

IDS = np.random.default_rng(0).integers(0, VOCAB, (2, 13))


def _lines(graph: ir.Graph) -> list[str]:
    """Return the nodes as `outputs = op(inputs)`."""
    return [
        f"{', '.join(str(value.name) for value in node.outputs)} = {node.op_type}"
        f"({', '.join('' if value is None else str(value.name) for value in node.inputs)})"
        for node in graph
    ]


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("window", [0, 5])
def test_the_paged_program_answers_as_the_dense_one(*, merged: bool, normed: bool, window: int) -> None:
    program = tiny_program(merged=merged, normed=normed, window=window)
    dense = logits(program, IDS)
    for cached_from in (None, 9):
        paged = logits(KvLayout(page=4, dtype="f32").run(program), IDS, cached_from=cached_from)
        assert divergence(dense, paged).max_abs_logit_diff < 1e-5


def test_the_window_is_that_of_the_mask() -> None:
    wide, narrow = (KvLayout(dtype="f32").run(tiny_program(window=window)) for window in (0, 5))
    assert divergence(logits(wide, IDS), logits(narrow, IDS)).max_abs_logit_diff > 1e-3


@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_a_rounded_cache_stays_within_the_bound_that_the_pass_states(dtype: str) -> None:
    pass_, program = KvLayout(page=4, dtype=dtype), tiny_program(normed=True)  # type: ignore[arg-type]
    measured = divergence(logits(program, IDS), logits(pass_.run(program), IDS, cached_from=9))
    assert 0 < measured.kl_mean < pass_.max_kl


def test_quantized_programs_are_laid_out_alike() -> None:
    program = QuantizeWeights().run(tiny_program())
    paged = KvLayout(dtype="f32").run(program)
    assert divergence(logits(program, IDS), logits(paged, IDS, cached_from=9)).max_abs_logit_diff < 1e-4


def test_the_form_and_the_layout_are_those_asked_for() -> None:
    program = tiny_program()
    paged = KvLayout(page=8, dtype="int8").run(program)
    assert (program.form, program.kv) == ("batch", None)
    assert (paged.form, paged.kv) == ("ragged", Layout(page=8, dtype="int8"))
    heads, dim = CONFIG.kv_heads, CONFIG.head_dim
    assert [(value.name, value.dtype, str(value.shape)) for value in paged.graph.inputs] == [
        ("input_ids", ir.DataType.INT64, "[tokens]"),
        ("positions", ir.DataType.INT64, "[tokens]"),
        ("sequences", ir.DataType.INT64, "[tokens]"),
        ("block_tables", ir.DataType.INT64, "[seqs,blocks]"),
        ("logit_rows", ir.DataType.INT64, "[rows]"),
        ("kv.0.key", ir.DataType.INT8, f"[pages,{heads},{dim},8]"),
        ("kv.0.value", ir.DataType.INT8, f"[pages,{heads},8,{dim}]"),
        ("kv.0.key_scale", ir.DataType.FLOAT, f"[pages,{heads},8]"),
        ("kv.0.value_scale", ir.DataType.FLOAT, f"[pages,{heads},8]"),
    ]
    assert [value.name for value in paged.graph.outputs] == [
        *("logits", "kv.0.key.out", "kv.0.value.out", "kv.0.key_scale.out", "kv.0.value_scale.out"),
    ]


def test_a_cache_of_4_bits_holds_two_codes_a_byte_and_costs_as_much() -> None:
    paged = KvLayout(page=8, dtype="int4").run(tiny_program())
    heads, dim = CONFIG.kv_heads, CONFIG.head_dim
    assert [(value.name, value.dtype, str(value.shape)) for value in paged.graph.inputs[5:]] == [
        ("kv.0.key", ir.DataType.UINT8, f"[pages,{heads},{dim // 2},8]"),
        ("kv.0.value", ir.DataType.UINT8, f"[pages,{heads},8,{dim // 2}]"),
        ("kv.0.key_scale", ir.DataType.FLOAT16, f"[pages,{heads},8]"),
        ("kv.0.value_scale", ir.DataType.FLOAT16, f"[pages,{heads},8]"),
    ]
    attend = next(node for node in paged.graph if node.op_type == "PagedAttention")
    two, one = (node_cost(attend, 1, context).bytes for context in (2, 1))
    assert two - one == 2 * heads * (dim / 2 + 2) == kv_bytes_per_token(paged)


def test_the_graph_after_the_pass() -> None:
    paged = KvLayout(dtype="f16").run(tiny_program(normed=True, window=5))
    assert _lines(paged.graph) == snapshot(
        [
            "x = Gather(model.embed_tokens.weight, input_ids)",
            "h = RMSNormalization(x, norm.weight)",
            "qkv = Linear(h, qkv.weight)",
            "q, k, v = Split(qkv, qkv.sizes)",
            "layers.0.query, kv.0.key.out, kv.0.value.out = RopeWriteKV(q, k, v, rope.cos, rope.sin, positions, sequences, block_tables, kv.0.key, kv.0.value, , , q_norm.weight, k_norm.weight)",  # noqa: E501
            "yf = PagedAttention(layers.0.query, kv.0.key.out, kv.0.value.out, , , positions, sequences, block_tables)",  # noqa: E501
            "o = Linear(yf, o.weight)",
            "s = Add(x, o)",
            "n = RMSNormalization(s, norm.weight)",
            "gu = Linear(n, gate_up.weight)",
            "a = GatedActivation(gu)",
            "d = Linear(a, down.weight)",
            "s2 = Add(s, d)",
            "f = RMSNormalization(s2, norm.weight)",
            "logit_rows.hidden = Gather(f, logit_rows)",
            "logits = Linear(logit_rows.hidden, model.embed_tokens.weight)",
        ]
    )
    write, attend = (node for node in paged.graph if node.op_type in {"RopeWriteKV", "PagedAttention"})
    assert {name: one.value for name, one in write.attributes.items()} == {
        "heads": 4,
        "kv_heads": 2,
        "dtype": "f16",
        "epsilon": pytest.approx(1e-6),
    }
    assert {name: one.value for name, one in attend.attributes.items()} == {
        "heads": 4,
        "kv_heads": 2,
        "scale": 0.25,
        "window": 5,
    }
    assert "past_key_values.0.key" not in {str(value.name) for value in paged.graph.inputs}


def test_a_program_that_is_laid_out_so_already_is_left_alone() -> None:
    paged = KvLayout().run(tiny_program())
    assert KvLayout().run(paged) is paged
    with pytest.raises(PassFailed, match="already laid out"):
        KvLayout(page=32).run(paged)


def test_a_program_whose_attention_is_not_fused_is_refused() -> None:
    program = tiny_program().copy()
    for node in program.graph:
        if node.op_type == "Attention":
            node.op_type = "Softmax"
    with pytest.raises(PassFailed, match="no Attention node") as caught:
        KvLayout().run(program)
    assert caught.value.hint == "run fuse-attention before kv-layout"


def test_an_op_that_mixes_tokens_is_refused() -> None:
    program = tiny_program().copy()
    (add, *_) = (node for node in program.graph if node.op_type == "Add")
    add.op_type = "CumSum"
    with pytest.raises(
        PassFailed, match="'CumSum' to pages: it does not compute each token's row from that row"
    ):
        KvLayout().run(program)


def test_a_page_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        KvLayout(page=0)
