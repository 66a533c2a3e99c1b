"""Weights stored on grids that kernels lack, or with wider scales, lose no more than they must."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.tiny import tiny_program
from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import initializer
from tokc.passes.quantize_weights import QuantizeWeights

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 64, 64


def stored(
    codes: np.ndarray, scale: np.ndarray, offset: np.ndarray | None, zero_point: int, block: int
) -> Program:
    """Return the tiny program whose 'o.weight' is a BlockDequantize of these."""
    program = tiny_program()
    old = program.graph.initializers["o.weight"]
    kind = ir.DataType.UINT4 if codes.dtype == np.uint8 else ir.DataType.INT8
    tensors = [ir.Tensor(codes.view(kind.numpy()), dtype=kind), ir.Tensor(scale)]
    tensors += [] if offset is None else [ir.Tensor(offset)]
    names = [f"o.weight.{part}" for part in ("q", "scale", "offset")]
    values = [initializer(tensor, name) for tensor, name in zip(tensors, names, strict=False)]
    node = make_node("BlockDequantize", values, {"zero_point": zero_point, "block_size": block})
    program.graph.insert_before(next(iter(program.graph)), [node])
    for value in values:
        program.graph.register_initializer(value)
    for use in list(old.uses()):
        use.node.replace_input_with(use.idx, node.outputs[0])
    program.graph.initializers.pop("o.weight")
    node.outputs[0].name = "o.weight"
    return program


def quantized(program: Program, **options: object) -> tuple[dict[str, np.ndarray], ir.Node]:
    made = QuantizeWeights(**options).run(program)  # type: ignore[arg-type]
    node = next(
        node for node in made.graph if "o.weight.q" in [str(value.name) for value in node.inputs if value]
    )
    parts = {}
    for name, value in made.graph.initializers.items():
        if name.startswith("o.weight."):
            assert value.const_value is not None
            parts[name.removeprefix("o.weight.")] = value.const_value.numpy()
    return parts, node


def wide_scales(groups: int) -> np.ndarray:
    return (RNG.uniform(0.001, 0.01, (ROWS, groups)) * 0.3337).astype(np.float32)


def test_wide_scales_become_fp16_and_codes_stay() -> None:
    codes = RNG.integers(0, 16, (ROWS, COLUMNS), dtype=np.uint8)
    scale, offset = wide_scales(2), -wide_scales(2)
    parts, node = quantized(stored(codes, scale, offset, 0, 32))
    assert (parts["q"].astype(np.uint8) == codes).all()
    np.testing.assert_array_equal(parts["scale"], scale.astype(np.float16))
    np.testing.assert_array_equal(parts["offset"], offset.astype(np.float16))
    assert node.attributes.get_int("block_size", 0) == 32


def test_the_code_that_some_machines_cannot_multiply_is_moved_by_one() -> None:
    codes = RNG.integers(-128, 128, (ROWS, COLUMNS), dtype=np.int8)
    codes[0, 0] = -128
    parts, _ = quantized(stored(codes, wide_scales(1), None, 0, 64))
    np.testing.assert_array_equal(parts["q"], np.maximum(codes, -127))


@pytest.mark.parametrize(
    ("kind", "zero_point", "block"), [("i8", 0, 16), ("offset", 0, 32), ("column", 8, 1)]
)
def test_a_grid_that_no_kernel_has_goes_to_8_bits(kind: str, zero_point: int, block: int) -> None:
    narrow = kind == "column"
    codes = (
        RNG.integers(0, 16, (ROWS, COLUMNS), dtype=np.uint8)
        if narrow
        else RNG.integers(-16, 16, (ROWS, COLUMNS), dtype=np.int8)
    )
    scale = wide_scales(COLUMNS // block)
    offset = -wide_scales(COLUMNS // block) if kind == "offset" else None
    want = (codes.astype(np.float32) - zero_point) * np.repeat(scale, block, axis=1)
    if offset is not None:
        want += np.repeat(offset, block, axis=1)
    parts, node = quantized(stored(codes, scale, offset, zero_point, block))
    assert parts["q"].dtype == np.int8
    assert node.attributes.get_int("block_size", 0) == 32
    near = parts["q"].astype(np.float32) * np.repeat(parts["scale"].astype(np.float32), 32, axis=1)
    largest = np.abs(want).reshape(ROWS, -1, 32).max(axis=2)
    assert (np.abs(near - want) <= np.repeat(largest, 32, axis=1) * 0.51 / 127).all()


def test_requantize_takes_such_a_grid_to_the_width_asked_for() -> None:
    codes = RNG.integers(-16, 16, (ROWS, COLUMNS), dtype=np.int8)
    parts, _ = quantized(stored(codes, wide_scales(4), None, 0, 16), requantize=True)
    assert parts["q"].max() <= 15
    assert parts["q"].dtype.itemsize == 1
    assert parts["q"].astype(np.int32).min() >= 0
