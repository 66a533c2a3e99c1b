"""Every op means what the contract of its row says; numpy is the judge."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from tokc.ir.execute import Session
from tokc.ir.ops import OPS, make_node, node_cost
from tokc.ir.program import IR_VERSION, OPSET, ModelConfig, Program

F32 = npt.NDArray[np.float32]
CONFIG = ModelConfig("test", 8, 1, 2, 1, 4, 16, 32, 64, 1e-5, tied_embedding=False)
RNG = np.random.default_rng(0)


def run_op(
    name: str,
    inputs: Mapping[str, npt.NDArray[np.generic] | None],
    attributes: Mapping[str, int | float | str],
) -> dict[str, npt.NDArray[np.generic]]:
    """Run one node; arrays of uint4 codes are named q_uint4."""
    values: list[ir.Value | None] = []
    inits, feeds = [], {}
    for key, array in inputs.items():
        if array is None:
            values.append(None)
        elif key in ("q", "scale", "offset", "weight", "bias") and name not in (
            "PagedAttention",
            "RopeWriteKV",
        ):
            tensor = ir.tensor(array, name=key)
            value = ir.Value(
                name=key, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            inits.append(value)
            values.append(value)
        else:
            dtype = ir.DataType.from_numpy(array.dtype)
            value = ir.Value(name=key, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
            feeds[key] = array
            values.append(value)
    node = make_node(name, values, attributes)
    op = OPS[name]
    if name == "RopeWriteKV" and "key_scale" in inputs and inputs["key_scale"] is not None:
        node = ir.node(name, node.inputs, attributes, domain="tokc", num_outputs=5)
    for output, value in zip(op.outputs, node.outputs, strict=False):
        value.name = output.removesuffix("?")
    for value, (dtype, shape) in zip(node.outputs, op.shape(node), strict=False):
        value.type, value.shape = ir.TensorType(dtype), shape
    graph = ir.Graph(
        [value for value in values if value is not None and value.const_value is None],
        list(node.outputs),
        nodes=[node],
        initializers=inits,
        opset_imports={"": OPSET, "tokc": 1},
        name="g",
    )
    program = Program(ir.Model(graph, ir_version=IR_VERSION), CONFIG)
    made = Session(program).run(feeds)
    for value in node.outputs:
        array = made[str(value.name)]
        assert value.dtype == ir.DataType.from_numpy(array.dtype)
        assert value.shape is not None
        assert tuple(value.shape) == array.shape
    return made


def random(*shape: int) -> F32:
    return RNG.normal(size=shape).astype(np.float32)


def dequantized(
    codes: npt.NDArray[np.generic], scale: F32, offset: F32 | None, zero_point: int, block: int
) -> F32:
    column = np.arange(codes.shape[1]) // block
    w = (codes.astype(np.float32) - zero_point) * scale.astype(np.float32)[:, column]
    return w if offset is None else w + offset.astype(np.float32)[:, column]


def rounded(x: F32, group: int) -> F32:
    out = np.zeros_like(x)
    for start in range(0, x.shape[-1], group):
        part = x[..., start : start + group]
        scale = np.abs(part).max(-1, keepdims=True) / np.float32(127)
        safe = np.where(scale == 0, np.float32(1), scale)
        out[..., start : start + group] = np.rint(part * (np.float32(1) / safe)) * scale
    return out


@pytest.mark.parametrize("columns", [64, 40])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "int8"])
@pytest.mark.parametrize("act_group", [0, 32])
def test_quant_linear_rounds_activations_and_weights_as_stated(
    columns: int, kind: str, act_group: int
) -> None:
    zero_point = 8 if kind == "symmetric" else 0
    blocks = -(-columns // 32)
    codes = RNG.integers(-127, 127, (6, columns)).astype(np.int8) if kind == "int8" else None
    if codes is None:
        codes = RNG.integers(0, 16, (6, columns)).astype(ir.DataType.UINT4.numpy())
    scale, offset = random(6, blocks).astype(np.float16), random(6, blocks).astype(np.float16)
    x, bias = random(2, 3, columns), random(6)
    x[0, 0] = 0
    given = offset if kind == "asymmetric" else None
    y = run_op(
        "QuantLinear",
        {"x": x, "q": codes, "scale": scale, "offset": given, "bias": bias},
        {"zero_point": zero_point, "block_size": 32, "act_group": act_group},
    )["y"]
    near = rounded(x, act_group) if act_group else x
    expected = near @ dequantized(codes, scale, given, zero_point, 32).T + bias
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-3)


def test_quant_embedding_picks_rows() -> None:
    codes = RNG.integers(0, 16, (9, 32)).astype(ir.DataType.UINT4.numpy())
    scale = random(9, 1).astype(np.float16)
    ids = np.array([[3, 0], [8, 8]], np.int64)
    rows = run_op("QuantEmbedding", {"ids": ids, "q": codes, "scale": scale}, {"zero_point": 8})["rows"]
    np.testing.assert_array_equal(rows, dequantized(codes, scale, None, 8, 32)[ids])


def test_linear_multiplies_by_the_transposed_weight() -> None:
    x, weight, bias = random(2, 3, 8), random(5, 8), random(5)
    y = run_op("Linear", {"x": x, "weight": weight, "bias": bias}, {})["y"]
    np.testing.assert_allclose(y, x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_add_rms_norm_returns_the_sum_and_its_norm() -> None:
    x, residual, weight = random(3, 8), random(3, 8), random(8)
    made = run_op("AddRmsNorm", {"x": x, "residual": residual, "weight": weight}, {"epsilon": 1e-5})
    total = x + residual
    np.testing.assert_array_equal(made["sum"], total)
    normed = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(made["normed"], normed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_activation_takes_the_gate_first(activation: str) -> None:
    x = random(3, 8)
    gate, up = x[:, :4], x[:, 4:]
    act = gate / (1 + np.exp(-gate))
    if activation == "gelu_tanh":
        act = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    y = run_op("GatedActivation", {"gate_up": x}, {"activation": activation})["y"]
    np.testing.assert_allclose(y, act * up, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 2])
def test_causal_mask_sees_the_past_within_the_window(window: int) -> None:
    ids, key = np.array([[2, 3], [0, 4]], np.int64), random(2, 1, 5, 4)
    mask = run_op("CausalMask", {"position_ids": ids, "key": key}, {"window": window})["mask"]
    j, pos = np.arange(5), ids[:, None, :, None]
    np.testing.assert_array_equal(mask, (j <= pos) & ((window == 0) | (j > pos - window)))


PAGES, PAGE, HEADS, KV_HEADS, DIM = 5, 4, 4, 2, 8
POSITIONS = np.array([5, 6, 0, 3], np.int64)
SEQUENCES = np.array([0, 0, 1, 2], np.int64)
TABLES = np.array([[3, 1], [0, 4], [2, 0]], np.int64)


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_write_kv_writes_each_token_at_its_page(dtype: str, *, normed: bool) -> None:
    kind = {"f32": np.float32, "f16": np.float16, "int8": np.int8}[dtype]
    q, k, v = random(4, HEADS * DIM), random(4, KV_HEADS * DIM), random(4, KV_HEADS * DIM)
    angle = np.arange(10)[:, None] * 10.0 ** -np.arange(DIM // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    key = np.zeros((PAGES, KV_HEADS, DIM, PAGE), kind)
    value = np.zeros((PAGES, KV_HEADS, PAGE, DIM), kind)
    scales = [np.zeros((PAGES, KV_HEADS, PAGE), np.float32) if dtype == "int8" else None] * 2
    norms = [random(DIM) if normed else None] * 2
    names = [
        *("q", "k", "v", "cos", "sin", "positions", "sequences", "block_tables"),
        "cache_key",
        "cache_value",
    ]
    names += ["key_scale", "value_scale", "q_norm", "k_norm"]
    given = [q, k, v, cos, sin, POSITIONS, SEQUENCES, TABLES, key, value, *scales, *norms]
    attributes = {"heads": HEADS, "kv_heads": KV_HEADS, "epsilon": 1e-5, "dtype": dtype}
    made = run_op("RopeWriteKV", dict(zip(names, given, strict=True)), attributes)

    def rotated(x: F32, norm: F32 | None) -> F32:
        heads = x.reshape(4, -1, DIM)
        if norm is not None:
            heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-5) * norm
        c, s = cos[POSITIONS][:, None], sin[POSITIONS][:, None]
        low, high = heads[..., : DIM // 2], heads[..., DIM // 2 :]
        return np.concatenate([low * c - high * s, high * c + low * s], -1)

    np.testing.assert_allclose(made["q_rot"], rotated(q, norms[0]).reshape(4, -1), rtol=1e-5, atol=1e-5)
    new_key, new_value = rotated(k, norms[1]), v.reshape(4, KV_HEADS, DIM)
    for token in range(4):
        page, slot = TABLES[SEQUENCES[token], POSITIONS[token] // PAGE], POSITIONS[token] % PAGE
        found_key = made["cache_key_out"][page, :, :, slot].astype(np.float32)
        found_value = made["cache_value_out"][page, :, slot].astype(np.float32)
        if dtype == "int8":
            found_key = found_key * made["key_scale_out"][page, :, slot, None]
            found_value = found_value * made["value_scale_out"][page, :, slot, None]
        tolerance = {"f32": 1e-5, "f16": 2e-3, "int8": 3e-2}[dtype]
        np.testing.assert_allclose(found_key, new_key[token], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found_value, new_value[token], rtol=tolerance, atol=tolerance)
    assert np.count_nonzero(np.abs(made["cache_key_out"].astype(np.float32)).sum((1, 2))) == 4


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("quantized", [False, True])
def test_paged_attention_attends_to_the_own_sequence(window: int, *, quantized: bool) -> None:
    q = random(4, HEADS * DIM)
    key, value = random(PAGES, KV_HEADS, DIM, PAGE), random(PAGES, KV_HEADS, PAGE, DIM)
    scales: list[F32 | None] = [None, None]
    plain_key, plain_value = key, value
    stored = [key, value]
    if quantized:
        stored = [RNG.integers(-127, 127, one.shape).astype(np.int8) for one in stored]
        scales = [np.abs(random(PAGES, KV_HEADS, PAGE)) / 50 for _ in range(2)]
        plain_key = stored[0] * scales[0][:, :, None, :]
        plain_value = stored[1] * scales[1][..., None]
    names = [
        "q",
        "cache_key",
        "cache_value",
        "key_scale",
        "value_scale",
        "positions",
        "sequences",
        "block_tables",
    ]
    given = [q, *stored, *scales, POSITIONS, SEQUENCES, TABLES]
    attributes = {"heads": HEADS, "kv_heads": KV_HEADS, "scale": 0.3, "window": window}
    y = run_op("PagedAttention", dict(zip(names, given, strict=True)), attributes)["y"].reshape(4, HEADS, DIM)
    for token in range(4):
        position = POSITIONS[token]
        seen = np.arange(max(0, position - window + 1) if window else 0, position + 1)
        pages, slots = TABLES[SEQUENCES[token], seen // PAGE], seen % PAGE
        for head in range(HEADS):
            keys = plain_key[pages, head // 2, :, slots]
            scores = keys @ q.reshape(4, HEADS, DIM)[token, head] * 0.3
            weights = np.exp(scores - scores.max())
            expected = (weights / weights.sum()) @ plain_value[pages, head // 2, slots]
            np.testing.assert_allclose(y[token, head], expected, rtol=1e-4, atol=1e-5)


def test_a_linear_costs_two_flops_a_weight_and_token() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["tokens", 64]), type=ir.TensorType(ir.DataType.FLOAT))
    q = ir.tensor(np.zeros((32, 64), ir.DataType.UINT4.numpy()))
    scale = ir.tensor(np.zeros((32, 2), np.float16))
    weights = [
        ir.Value(name=n, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t)
        for n, t in (("q", q), ("s", scale))
    ]
    cost = node_cost(make_node("QuantLinear", [x, *weights], {"zero_point": 8}), tokens=3, context=10)
    assert cost.flops == 2 * 3 * 32 * 64
    assert cost.bytes == 32 * 64 / 2 + 32 * 2 * 2 + 3 * (64 + 32) * 4
