"""The ops of layers of experts mean what their rows say, and cost what the chosen experts cost."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from tests.ir.test_ops import dequantized, random, run_op
from tokc.ir.ops import make_node, node_cost

F32 = npt.NDArray[np.float32]
EXPERTS, SLOTS, ROWS, COLUMNS = 5, 2, 6, 32
CHOSEN = np.array([[[4, 0], [1, 4], [2, 3]]], np.int64)  # [batch, seq, slots]


def softmax(x: F32) -> F32:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("normalize", [0, 1])
def test_a_router_weighs_the_best_experts_and_of_equals_takes_the_first(normalize: int, shared: int) -> None:
    x = random(1, 7, COLUMNS)
    weight = random(EXPERTS + shared, COLUMNS)
    weight[3] = weight[1]  # a tie in every row
    attributes = {"top_k": 3, "normalize": normalize, "shared": shared}
    made = run_op("MoeRouter", {"x": x, "weight": weight}, attributes)
    scores = x @ weight.T
    chosen = np.argsort(-np.round(scores[..., :EXPERTS], 4), axis=-1, kind="stable")[..., :3]
    np.testing.assert_array_equal(made["experts"], chosen)
    likely = np.take_along_axis(softmax(scores[..., :EXPERTS]), chosen, -1)
    expected = likely / likely.sum(-1, keepdims=True) if normalize else likely
    np.testing.assert_allclose(made["weights"][..., :3], expected, rtol=1e-5)
    if shared:
        np.testing.assert_allclose(
            made["weights"][..., 3], 1 / (1 + np.exp(-scores[..., -1])), rtol=1e-5, atol=1e-6
        )


def by_hand(x: F32, weight: F32) -> F32:
    """Return each slot's product, x with or without an axis of slots."""
    each = weight.reshape(EXPERTS, ROWS, COLUMNS)[CHOSEN]
    rows = x if x.ndim > CHOSEN.ndim else x[..., None, :]
    return np.einsum("bskrc,bskc->bskr", each, np.broadcast_to(rows, (*CHOSEN.shape, COLUMNS)))


@pytest.mark.parametrize("shape", [(1, 3, COLUMNS), (1, 3, SLOTS, COLUMNS)])
def test_each_slot_is_multiplied_by_its_own_expert(shape: tuple[int, ...]) -> None:
    x, weight = random(*shape), random(EXPERTS * ROWS, COLUMNS)
    made = run_op("MoeLinear", {"x": x, "weight": weight, "experts": CHOSEN}, {"experts": EXPERTS})
    np.testing.assert_allclose(made["y"], by_hand(x, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [False, True])
def test_experts_on_a_grid_are_those_that_the_grid_says(offset: bool) -> None:
    rows = EXPERTS * ROWS
    codes = np.random.default_rng(1).integers(-9, 10, (rows, COLUMNS)).astype(np.int8)
    scale = np.abs(random(rows, 2)).astype(np.float16)
    shift = random(rows, 2).astype(np.float16) if offset else None
    x = random(1, 3, COLUMNS)
    attributes = {"experts": EXPERTS, "block_size": 16, "act_group": 0}
    inputs = {"x": x, "q": codes, "scale": scale, "offset": shift, "experts": CHOSEN}
    made = run_op("QuantMoeLinear", inputs, attributes)
    expected = by_hand(x, dequantized(codes, scale, shift, 0, 16))
    np.testing.assert_allclose(made["y"], expected, rtol=1e-3, atol=1e-3)


def test_results_are_summed_by_their_weights() -> None:
    y, weights, shared = random(1, 3, SLOTS, ROWS), random(1, 3, SLOTS + 1), random(1, 3, ROWS)
    routed = (y * weights[..., :SLOTS, None]).sum(-2)
    made = run_op("MoeCombine", {"y": y, "weights": weights[..., :SLOTS]}, {})
    np.testing.assert_allclose(made["out"], routed, rtol=1e-5, atol=1e-6)
    made = run_op("MoeCombine", {"y": y, "weights": weights, "shared": shared}, {})
    np.testing.assert_allclose(made["out"], routed + weights[..., SLOTS:] * shared, rtol=1e-5, atol=1e-6)


def expert_linear(experts: int, slots: int) -> ir.Node:
    tensor = ir.tensor(np.zeros((experts * 64, 128), np.float32), name="w")
    weight = ir.Value(name="w", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    given: Mapping[str, tuple[ir.DataType, list[str | int]]] = {
        "x": (ir.DataType.FLOAT, ["tokens", 128]),
        "experts": (ir.DataType.INT64, ["tokens", slots]),
    }
    x, chosen = (
        ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))
        for name, (dtype, dims) in given.items()
    )
    return make_node("MoeLinear", [x, weight, chosen], {"experts": experts})


def test_only_the_chosen_experts_are_computed_and_those_expected_are_read() -> None:
    node, one = expert_linear(8, 2), 64 * 128 * 4
    for tokens in (1, 3, 100):
        cost = node_cost(node, tokens, context=1)
        assert cost.flops == 2 * tokens * 2 * 64 * 128
        moved = tokens * (4 * 128 + 8 * 2 + 4 * 2 * 64)
        touched = 8 * (1 - 0.75**tokens)
        assert cost.bytes == pytest.approx(touched * one + moved)
        assert touched <= min(8, 2 * tokens)
    assert node_cost(node, 1, context=1).bytes == pytest.approx(2 * one + 4 * 128 + 16 + 512)
