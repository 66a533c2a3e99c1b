"""Weights on a grid."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.tiny import VOCAB, tiny_program
from tokc.errors import PassFailed
from tokc.ir.inference import annotate_shapes
from tokc.ir.ops import make_node, node_cost
from tokc.ir.program import Program
from tokc.passes.quantization.grid import Grid
from tokc.passes.quantization.pack import pack
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.quality.divergence import divergence, logits

IDS = np.random.default_rng(0).integers(0, VOCAB, (2, 13))


def _ops(program: Program) -> Counter[str]:
    return Counter(node.op_type for node in program.graph)


def _stored(program: Program, names: list[str], grid: Grid) -> Program:
    """Return the program with the named weights as a GGUF file would hold them."""
    copy = program.copy()
    for name in names:
        plain = copy.graph.initializers[name]
        assert plain.const_value is not None
        packed = pack(name, grid.quantize(plain.const_value.numpy()))
        operands = []
        for tensor in (packed.codes, packed.scale, packed.offset):
            if tensor is None:
                continue
            value = ir.Value(
                name=tensor.name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            copy.graph.register_initializer(value)
            operands.append(value)
        attributes = {"zero_point": grid.zero_point, "block_size": grid.group, "bits": grid.bits % 4}
        node = make_node("BlockDequantize", operands, attributes)
        plain.replace_all_uses_with(node.outputs[0])
        node.outputs[0].name = name
        del copy.graph.initializers[name]
        copy.graph.insert_before(copy.graph[0], node)
    return copy


def test_every_linear_layer_and_the_embedding_move_to_a_grid() -> None:
    program = tiny_program()
    quantized = QuantizeWeights().run(program)
    assert _ops(program)["Linear"] == _ops(quantized)["QuantLinear"] == 5
    assert _ops(quantized)["QuantEmbedding"] == 1
    assert not {"Linear", "Gather"} & set(_ops(quantized))
    types = {name: value.dtype for name, value in quantized.graph.initializers.items()}
    assert types["qkv.weight.q"] == ir.DataType.UINT4
    assert types["qkv.weight.scale"] == ir.DataType.FLOAT16
    assert types["model.embed_tokens.weight.q"] == ir.DataType.INT8
    assert "qkv.weight" not in types
    assert "qkv.weight" in program.graph.initializers


def test_a_tied_table_is_stored_once_for_the_embedding_and_the_head() -> None:
    quantized = QuantizeWeights().run(tiny_program())
    (embedding,) = (node for node in quantized.graph if node.op_type == "QuantEmbedding")
    head = quantized.graph.outputs[0].producer()
    assert head is not None
    assert head.inputs[1] is embedding.inputs[1]
    assert head.inputs[2] is embedding.inputs[2]


@pytest.mark.parametrize(
    ("options", "kl"),
    [
        ({}, 0.05),
        ({"symmetric": False}, 0.05),
        ({"head_bits": 4}, 0.2),
        ({"bits": 3}, 0.2),
        ({"bits": 3, "symmetric": False}, 0.2),
        ({"bits": 2, "symmetric": False}, 1.0),
        ({"bits": 2, "head_bits": 3}, 1.0),
        ({"group": 16}, 0.05),
        ({"group": 48}, 0.05),
        ({"bits": 8}, 1e-3),
        ({"bits": 8, "act_group": 0}, 1e-3),
        ({"bits": 8, "head_bits": 32}, 1e-3),
    ],
)
@pytest.mark.parametrize("merged", [True, False])
def test_answers_move_by_less_than_the_bits_allow(
    options: dict[str, int], kl: float, *, merged: bool
) -> None:
    program = tiny_program(merged=merged)
    pass_ = QuantizeWeights(**options)  # type: ignore[arg-type]
    measured = divergence(logits(program, IDS), logits(pass_.run(program), IDS))
    assert 0 < measured.kl_mean < kl <= pass_.max_kl


def test_more_bits_are_nearer() -> None:
    program = tiny_program()
    reference = logits(program, IDS)
    kl = [
        divergence(reference, logits(QuantizeWeights(bits=bits, act_group=0).run(program), IDS)).kl_mean
        for bits in (2, 3, 4, 8)
    ]
    assert kl[0] > 2 * kl[1] > 4 * kl[2] > 40 * kl[3]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_weight_is_priced_at_its_bits(bits: int) -> None:
    program = tiny_program()
    quantized = QuantizeWeights(bits=bits, head_bits=bits, group=64).run(program)  # type: ignore[arg-type]
    codes = {name: one for name, one in quantized.graph.initializers.items() if name.endswith(".q")}
    weights = sum(int(np.prod(one.shape or ())) for one in codes.values())
    rest = sum(
        one.const_value.nbytes
        for name, one in quantized.graph.initializers.items()
        if name not in codes and one.const_value is not None
    )
    assert quantized.weight_bytes() == rest + weights * bits / 8
    annotate_shapes(quantized.graph)
    node = next(node for node in quantized.graph if node.op_type == "QuantLinear")
    rows, columns = codes["qkv.weight.q"].shape or ()
    scales = rows * -(-columns // 64)
    assert node_cost(node, 1, 1).bytes == rows * columns * bits / 8 + 2 * scales + 4 * (rows + columns)


@pytest.mark.parametrize(
    "grid", [Grid(4, 32), Grid(4, 32, symmetric=False), Grid(8, 32), Grid(4, 16), Grid(3, 32)]
)
def test_a_stored_grid_is_kept_bit_by_bit(grid: Grid) -> None:
    names = ["qkv.weight", "model.embed_tokens.weight"]
    program = _stored(tiny_program(), names, grid)
    quantized = QuantizeWeights(act_group=0, head_bits=32, group=grid.group).run(program)
    assert "BlockDequantize" not in _ops(quantized)
    for name in names:
        for part in (".q", ".scale"):
            before, after = (one.graph.initializers[name + part].const_value for one in (program, quantized))
            assert before is after
    kept = {name: value for name, value in quantized.graph.initializers.items() if name in names}
    assert kept == {}


def test_a_program_whose_weights_all_lie_on_a_grid_answers_exactly_alike() -> None:
    names = ["qkv.weight", "o.weight", "gate_up.weight", "down.weight", "model.embed_tokens.weight"]
    program = _stored(tiny_program(), names, Grid(4, 32, symmetric=False))
    quantized = QuantizeWeights(act_group=0).run(program)
    assert divergence(logits(program, IDS), logits(quantized, IDS)).max_abs_logit_diff < 1e-6


def test_requantize_puts_other_grids_of_enough_bits_on_the_one_asked_for() -> None:
    program = _stored(tiny_program(), ["qkv.weight"], Grid(8, 32))
    program = _stored(program, ["o.weight"], Grid(4, 32, symmetric=False))
    program = _stored(program, ["gate_up.weight"], Grid(3, 32))
    program = _stored(program, ["down.weight"], Grid(4, 32))
    before = program.graph.initializers
    values = QuantizeWeights(requantize=True).run(program).graph.initializers
    codes, scale = (before[f"qkv.weight.{part}"].const_value for part in ("q", "scale"))
    made = values["qkv.weight.q"].const_value
    assert codes is not None
    assert scale is not None
    assert made is not None
    assert made.numpy().dtype == ml_dtypes.uint4
    expected = Grid(4, 32).quantize(Grid(8, 32).decode(codes.numpy(), scale.numpy()))
    np.testing.assert_array_equal(made.numpy().astype(np.uint8), expected.codes)
    assert "o.weight.offset" not in values
    for kept in ("gate_up.weight.q", "down.weight.q"):
        assert values[kept].const_value is before[kept].const_value
    values = QuantizeWeights().run(program).graph.initializers
    assert all(values[name].const_value is before[name].const_value for name in before if ".weight." in name)


def test_biases_stay_and_activations_are_rounded_in_the_groups_asked_for() -> None:
    quantized = QuantizeWeights(act_group=16).run(tiny_program(merged=False))
    nodes = {str(node.outputs[0].name): node for node in quantized.graph}
    bias = nodes["q"].inputs[4]
    assert nodes["q"].inputs[3] is None
    assert bias is not None
    assert bias.name == "q.bias"
    assert len(nodes["k"].inputs) == 3
    assert {
        node.attributes.get_int("act_group", -1) for node in nodes.values() if node.op_type == "QuantLinear"
    } == {16}


def test_a_program_without_plain_weights_is_left_alone() -> None:
    quantized = QuantizeWeights().run(tiny_program())
    assert QuantizeWeights().run(quantized) is quantized


def test_a_weight_that_is_not_finite_is_named() -> None:
    program = tiny_program()
    tensor = program.graph.initializers["o.weight"].const_value
    assert tensor is not None
    tensor.numpy()[3, 5] = np.nan
    quantized = QuantizeWeights().run(program)
    codes = quantized.graph.initializers["o.weight.q"].const_value
    assert codes is not None
    with pytest.raises(PassFailed, match="not finite") as caught:
        codes.numpy()
    assert caught.value.where == "weight 'o.weight'"


@pytest.mark.parametrize("options", [{"bits": 5}, {"group": 0}, {"act_group": -1}])
def test_options_without_a_meaning_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"grid|group"):
        QuantizeWeights(**options)  # type: ignore[arg-type]


def test_no_weight_is_read_before_its_codes_are() -> None:
    program = tiny_program()
    reads = []
    value = program.graph.initializers["o.weight"]
    tensor = value.const_value
    assert tensor is not None

    def read() -> ir.TensorProtocol:
        reads.append("o.weight")
        return ir.tensor(tensor)

    value.const_value = ir.LazyTensor(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))
    quantized = QuantizeWeights().run(program)
    assert quantized.weight_bytes() < program.weight_bytes() / 4
    assert reads == []
    for part in (".q", ".scale", ".q"):
        made = quantized.graph.initializers["o.weight" + part].const_value
        assert made is not None
        made.numpy()
    assert reads == ["o.weight"]
