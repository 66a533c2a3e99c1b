"""Kernels that work row by row: equal to numpy, and every row the same bits in any batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tokc.errors import TargetRefused
from tokc.targets.cpu.codegen import Kernel
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.arg_max import ArgMax
from tokc.targets.cpu.kernels.elementwise import Add, Apply, GatherRows, Multiply, Scale
from tokc.targets.cpu.kernels.gated_activation import GatedActivation
from tokc.targets.cpu.kernels.layer_norm import LayerNorm
from tokc.targets.cpu.kernels.logit_blocks import LogitBlocks
from tokc.targets.cpu.kernels.quantize import Quantize
from tokc.targets.cpu.kernels.residual_silu import ResidualSilu
from tokc.targets.cpu.kernels.rms_norm import RmsNorm

Array = npt.NDArray[Any]
Align = Callable[[Array], Array]
ROWS = 5
WIDTH, STRIDE = 576, 640
LOGITS, VOCABULARIES, BLOCKS = 416, (1, 64, 77, 400), 6
RNG = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32) * 3


def quantized(y: Array) -> tuple[Array, Array, Array]:
    groups = y.reshape(len(y), -1, 32)
    scale = (np.abs(groups).max(-1) / np.float32(127)).astype(np.float32)
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, 1), 0).astype(np.float32)
    q = np.rint(groups * inverse[..., None]).astype(np.int8)
    return q.reshape(y.shape), scale, q.astype(np.int32).sum(-1).astype(np.int32)


def outputs(kernel: Any, width: int, rows: int, align: Align) -> dict[str, Array]:
    shapes: dict[str, tuple[int, Any]] = {
        "sum": (STRIDE, np.float32),
        "y": (width, np.float32),
        "out": (width, np.float32),
        "xq": (width, np.int8),
        "xs": (width // 32, np.float32),
        "xsum": (width // 32, np.int32),
    }
    return {
        name: align(np.zeros((rows, shapes[name][0]), shapes[name][1]))
        for name in kernel.args
        if name in shapes
    }


ALL: Sequence[tuple[str, Callable[[Isa], Any], int]] = (
    ("rms_norm", lambda isa: RmsNorm(isa, WIDTH, STRIDE, 1e-5, False, True, True), WIDTH),
    ("add_rms_norm", lambda isa: RmsNorm(isa, WIDTH, STRIDE, 1e-6, True, True, True), WIDTH),
    ("norm_int8_only", lambda isa: RmsNorm(isa, WIDTH, STRIDE, 1e-6, True, True, False), WIDTH),
    ("norm_float_only", lambda isa: RmsNorm(isa, WIDTH, STRIDE, 1e-6, False, False, True), WIDTH),
    ("layer_norm", lambda isa: LayerNorm(isa, WIDTH, STRIDE, 1e-5, True, True, True), WIDTH),
    ("layer_norm_plain", lambda isa: LayerNorm(isa, WIDTH, STRIDE, 1e-5, False, False, True), WIDTH),
    ("quantize", lambda isa: Quantize(isa, WIDTH, STRIDE), WIDTH),
    ("silu", lambda isa: GatedActivation(isa, 320, STRIDE, "silu", True, True), 320),
    ("gelu", lambda isa: GatedActivation(isa, 320, STRIDE, "gelu_tanh", True, True), 320),
    ("residual_silu", lambda isa: ResidualSilu(isa, 160, 4, STRIDE, STRIDE, True, True), 640),
    ("add", lambda isa: Add(isa, WIDTH, STRIDE, STRIDE), WIDTH),
    ("multiply", lambda isa: Multiply(isa, WIDTH, STRIDE, STRIDE), WIDTH),
    ("scale", lambda isa: Scale(isa, WIDTH, STRIDE, 1.7), WIDTH),
    ("apply_silu", lambda isa: Apply(isa, WIDTH, STRIDE, "silu"), WIDTH),
    ("apply_gelu", lambda isa: Apply(isa, WIDTH, STRIDE, "gelu_tanh"), WIDTH),
    ("apply_exact_gelu", lambda isa: Apply(isa, WIDTH, STRIDE, "gelu"), WIDTH),
    ("apply_tanh", lambda isa: Apply(isa, WIDTH, STRIDE, "tanh"), WIDTH),
    ("apply_sigmoid", lambda isa: Apply(isa, WIDTH, STRIDE, "sigmoid"), WIDTH),
    ("copy", lambda isa: Apply(isa, WIDTH, STRIDE, "copy"), WIDTH),
)


def all_kernels(isa: Isa) -> list[Kernel]:
    choosing = [
        LogitBlocks(isa, BLOCKS * 64, LOGITS),
        *(ArgMax(isa, vocab, LOGITS) for vocab in VOCABULARIES),
    ]
    return [*(make(isa) for _, make, _ in ALL), *choosing]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(name: str, kernel: Any, inputs: dict[str, Array]) -> dict[str, Array]:
    """Return the expected f32 outputs, computed in f64."""
    x, other = (a.astype(np.float64) for a in list(inputs.values())[:2])
    if name.startswith("layer_norm"):
        centred = x[:, :WIDTH] - x[:, :WIDTH].mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + kernel.epsilon) * inputs["weight"]
        return {"y": normed + (inputs["bias"] if kernel.bias else 0)}
    if "norm" in name:
        total = (x + other if kernel.add else x)[:, :WIDTH]
        normed = total / np.sqrt((total**2).mean(-1, keepdims=True) + kernel.epsilon) * inputs["weight"]
        return {"sum": np.pad(total, ((0, 0), (0, STRIDE - WIDTH))), "y": normed}
    if name in {"silu", "gelu"}:
        return {"y": (silu if name == "silu" else gelu)(x[:, :320]) * x[:, 320:640]}
    if name == "residual_silu":
        return {"y": np.tile(x[:, :160], 4) + silu(other[:, :640])}
    answers: dict[str, Callable[[], Array]] = {
        "quantize": lambda: x,
        "copy": lambda: x,
        "add": lambda: x + other,
        "multiply": lambda: x * other,
        "scale": lambda: x * 1.7,
        "apply_sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "apply_silu": lambda: silu(x),
        "apply_tanh": lambda: np.tanh(x),
        "apply_exact_gelu": lambda: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "apply_gelu": lambda: gelu(x),
    }
    return dict.fromkeys(("y", "out"), answers[name]()[:, :WIDTH])


@pytest.fixture
def inputs(align: Align) -> dict[str, Array]:
    x, residual = normal(ROWS, STRIDE), normal(ROWS, STRIDE)
    x[0, :32] = 0
    x[1, :40] = np.linspace(-120, 120, 40)
    return {
        "x": align(x),
        "residual": align(residual),
        "weight": align(normal(WIDTH)),
        "bias": align(normal(WIDTH)),
    }


def operands(
    kernel: Any, inputs: dict[str, Array], results: dict[str, Array], row: int | None
) -> list[Array]:
    other = {"gate_up": "x", "a": "x", "b": "residual", "gates": "residual"}
    picked = []
    for name in kernel.args:
        if name in results:
            picked.append(results[name])
            continue
        array = inputs[other.get(name, name)]
        picked.append(array if row is None or name in {"weight", "bias"} else array[row : row + 1])
    return picked


@pytest.mark.parametrize("case", ALL, ids=[name for name, _, _ in ALL])
def test_each_row_kernel_equals_numpy_and_is_bitwise_the_same_alone(
    case: tuple[str, Callable[[Isa], Any], int],
    isa: Isa,
    load_kernels: Any,
    align: Align,
    inputs: dict[str, Array],
) -> None:
    name, make, width = case
    library = load_kernels(all_kernels(isa), isa)
    kernel = make(isa)
    results = outputs(kernel, width, ROWS, align)
    library.run(kernel, *operands(kernel, inputs, results, None), rows=ROWS)
    expected = reference(name, kernel, inputs)
    for output in ("sum", "y", "out"):
        if output in results:
            np.testing.assert_allclose(results[output], expected[output], rtol=2e-6, atol=1e-6)
    if "xq" in results:
        check_quants(results, expected["y"].astype(np.float32))
    for threads in (2, 3):
        again = outputs(kernel, width, ROWS, align)
        library.run(kernel, *operands(kernel, inputs, again, None), rows=ROWS, threads=threads)
        assert all(again[key].tobytes() == results[key].tobytes() for key in results)
    for row in range(ROWS):
        alone = outputs(kernel, width, 1, align)
        library.run(kernel, *operands(kernel, inputs, alone, row), rows=1, threads=2)
        assert all(alone[key].tobytes() == results[key][row : row + 1].tobytes() for key in results)


def check_quants(results: dict[str, Array], expected: Array) -> None:
    """Compare with the quantization of the kernel's own f32 result, or nearly of the expected one."""
    if "y" in results:
        for key, value in zip(("xq", "xs", "xsum"), quantized(results["y"]), strict=True):
            assert results[key].tobytes() == value.tobytes()
    q, scale, _ = quantized(expected)
    np.testing.assert_allclose(results["xs"], scale, rtol=1e-5)
    assert np.abs(results["xq"].astype(int) - q.astype(int)).max() <= 1
    sums = results["xq"].astype(np.int32).reshape(*results["xs"].shape, 32).sum(-1)
    assert (results["xsum"] == sums).all()


def test_rows_are_gathered(isa: Isa, load_kernels: Any, align: Align, inputs: dict[str, Array]) -> None:
    kernel = GatherRows(isa, WIDTH, STRIDE)
    indices = align(np.array([4, 0, 4, 2], np.int32))
    out = align(np.zeros((4, WIDTH), np.float32))
    load_kernels([kernel], isa).run(kernel, inputs["x"], indices, out, rows=4, threads=3)
    assert (out == inputs["x"][indices, :WIDTH]).all()


def test_the_exponential_is_within_an_ulp_or_two(isa: Isa, load_kernels: Any, align: Align) -> None:
    kernel = Apply(isa, 4096, 4096, "sigmoid")
    x = align(np.linspace(-60, 60, 4096, dtype=np.float32).reshape(1, -1))
    out = align(np.zeros_like(x))
    load_kernels([kernel], isa).run(kernel, x, out, rows=1)
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=3e-7)


def test_a_width_of_no_whole_groups_is_refused(isa: Isa) -> None:
    with pytest.raises(TargetRefused, match="width 40 is not a multiple of 32"):
        Quantize(isa, 40, 40)


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_the_likeliest_token_is_the_first_of_the_largest_logits(
    load_kernels: Any, isa: Isa, align: Align, vocab: int
) -> None:
    kernel = ArgMax(isa, vocab, LOGITS)
    rows = RNG.integers(-9, 9, (40, LOGITS)).astype(np.float32)  # many equals
    rows[:, vocab:] = 1e9  # beyond the vocabulary
    rows[1, :vocab], rows[2, :vocab] = np.nan, -np.inf
    rows[3, :vocab:2] = np.nan
    rows[4, vocab - 1] = np.inf
    logits, found = align(rows), align(np.full(len(rows), -1, np.int32))
    load_kernels(all_kernels(isa), isa).run(kernel, logits, found, rows=len(rows), threads=3)
    seen = np.where(np.isnan(rows[:, :vocab]), -np.inf, rows[:, :vocab])
    np.testing.assert_array_equal(found, seen.argmax(axis=1))


def test_blocks_of_logits_have_their_largest_and_their_sum(load_kernels: Any, isa: Isa, align: Align) -> None:
    kernel = LogitBlocks(isa, BLOCKS * 64, LOGITS)
    logits = align(normal(40, LOGITS) * 4)
    rows = logits[:, : kernel.vocab]
    tokens, scales = (
        align(rows.argmax(axis=1).astype(np.int32)),
        align(np.linspace(0, 9, 40, dtype=np.float32)),
    )
    maxima, sums = (align(np.full((40, BLOCKS), -1, np.float32)) for _ in range(2))
    load_kernels(all_kernels(isa), isa).run(kernel, logits, tokens, scales, maxima, sums, rows=40, threads=3)
    assert (maxima[0] == -1).all(), "a row whose scale is 0 is left alone"
    blocks = rows.reshape(40, BLOCKS, 64)[1:]
    np.testing.assert_array_equal(maxima[1:], blocks.max(axis=2))
    exponents = (blocks - blocks.max(axis=(1, 2), keepdims=True)) * scales[1:, None, None]
    np.testing.assert_allclose(
        sums[1:], np.exp(exponents, dtype=np.float64).sum(axis=2), rtol=1e-6, atol=1e-36
    )
