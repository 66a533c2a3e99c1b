"""Kernels of mixture-of-experts layers: equal to numpy, and the same bits in any batch and on any thread."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.cpu.linear_cases import GROUP, quantized, spread
from tokc.targets.cpu.isa import ISAS, Isa, host_isa, runnable_isas
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.moe import MoeCombine, MoeGather, MoeGroup, MoeRoute
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.packing import pack_linear, pack_quant

Array = npt.NDArray[Any]
EXPERTS, SLOTS, N, K, STRIDE = 6, 3, 100, 96, 128
ROWS = 45
ROUTES = [(normalize, shared) for normalize in (False, True) for shared in (False, True)]


@pytest.fixture(params=sorted({runnable_isas()[0].name, runnable_isas()[-1].name}))
def isa(request: pytest.FixtureRequest) -> Isa:
    """Return this machine's plainest and its best instruction set; what differs is in the linear kernels."""
    return ISAS[request.param]


def routes(isa: Isa) -> list[MoeRoute]:
    return [MoeRoute(isa, EXPERTS, SLOTS, normalize, shared, 32) for normalize, shared in ROUTES]


def layers(isa: Isa) -> list[MoeLinear]:
    narrow, wide = (
        QuantLinear(isa, N, K, bits, symmetric=bits == 8, bias=False, y_stride=STRIDE) for bits in (4, 8)
    )
    plain = Linear(isa, N, K, bias=False, x_stride=K, y_stride=STRIDE)
    return [MoeLinear(one, EXPERTS) for one in (narrow, wide, plain)]


@dataclass(frozen=True)
class Runner:
    """Runs kernels of one library on fresh aligned copies."""

    library: Any
    align: Callable[[Array], Array]

    def __call__(
        self, kernel: Any, given: Mapping[str, Array], made: Mapping[str, Array], rows: int, threads: int = 1
    ) -> dict[str, Array]:
        """Return the arrays `made` as the kernel leaves them."""
        arrays = {name: self.align(value) for name, value in {**given, **made}.items()}
        self.library.run(kernel, *(arrays[name] for name in kernel.args), rows=rows, threads=threads)
        return {name: arrays[name] for name in made}


@pytest.fixture
def run(load_kernels: Any, isa: Isa, align: Callable[[Array], Array]) -> Runner:
    kernels = [
        *routes(isa),
        MoeGroup(isa, EXPERTS, SLOTS),
        *(MoeGather(isa, K, SLOTS, 128, quantized) for quantized in (False, True)),
        *(MoeCombine(isa, K, SLOTS, STRIDE, shared) for shared in (0, 128)),
        *layers(isa),
    ]
    return Runner(load_kernels(kernels, isa), align)


def scores(rows: int) -> Array:
    """Return scores with ties, in rows of 32 whose rest is large, so that reading it is seen."""
    rng = np.random.default_rng(5)
    made = np.full((rows, 32), 9.0, np.float32)
    made[:, : EXPERTS + 1] = rng.integers(-3, 4, (rows, EXPERTS + 1))
    made[0, :EXPERTS] = 1.0
    return made


def routed(run: Runner, kernel: MoeRoute, given: Array, threads: int = 1) -> dict[str, Array]:
    rows = len(given)
    made = {
        "experts": np.full((rows, SLOTS), -1, np.int32),
        "weights": np.full((rows, kernel.weights), np.nan, np.float32),
    }
    return run(kernel, {"scores": given}, made, rows, threads)


def test_a_router_chooses_the_largest_scores_and_of_equal_ones_the_first(run: Runner, isa: Isa) -> None:
    given = scores(ROWS)
    chosen = np.argsort(-given[:, :EXPERTS], axis=1, kind="stable")[:, :SLOTS]
    every = np.exp(given[:, :EXPERTS].astype(np.float64))
    for kernel in routes(isa):
        made = routed(run, kernel, given)
        assert (made["experts"] == chosen).all()
        weights = np.take_along_axis(every, chosen, 1)
        weights /= (weights if kernel.normalize else every).sum(1, keepdims=True)
        assert np.abs(made["weights"][:, :SLOTS] - weights).max() < 1e-6
        if kernel.shared:
            gate = 1 / (1 + np.exp(-given[:, EXPERTS].astype(np.float64)))
            assert np.abs(made["weights"][:, SLOTS] - gate).max() < 1e-6
        for first, last, threads in ((0, 1, 1), (7, 20, 2), (0, ROWS, 3)):
            again = routed(run, kernel, given[first:last], threads)
            assert all((again[name] == made[name][first:last]).all() for name in made)


def test_scores_that_are_no_numbers_choose_experts_that_exist(run: Runner, isa: Isa) -> None:
    made = routed(run, routes(isa)[0], np.full((2, 32), np.nan, np.float32))
    assert ((made["experts"] >= 0) & (made["experts"] < EXPERTS)).all()


def grouped(run: Runner, isa: Isa, experts: Array, threads: int = 1) -> dict[str, Array]:
    slots = experts.size
    made = {
        "starts": np.full(2 * EXPERTS + 1, -1, np.int32),
        "tokens": np.full(slots, -1, np.int32),
        "places": np.full(slots, -1, np.int32),
    }
    return run(MoeGroup(isa, EXPERTS, SLOTS), {"experts": experts}, made, len(experts), threads)


def some_experts(rows: int, leave: int = 2) -> Array:
    """Return choices that leave out expert `leave`."""
    rng = np.random.default_rng(7)
    others = [expert for expert in range(EXPERTS) if expert != leave]
    return np.stack([rng.permutation(others)[:SLOTS] for _ in range(rows)]).astype(np.int32)


def test_slots_are_grouped_by_expert_in_their_own_order(run: Runner, isa: Isa) -> None:
    for rows in (1, 2, ROWS):
        experts = some_experts(rows)
        for threads in (1, 3):
            made = grouped(run, isa, experts, threads)
            order = np.argsort(experts.reshape(-1), kind="stable")
            counts = np.bincount(experts.reshape(-1), minlength=EXPERTS)
            assert (made["starts"][: EXPERTS + 1] == np.concatenate([[0], np.cumsum(counts)])).all()
            assert (made["tokens"] == order // SLOTS).all()
            assert (made["places"][order] == np.arange(rows * SLOTS)).all()


def test_rows_are_gathered_as_they_are(run: Runner, isa: Isa) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, ROWS, ROWS * SLOTS).astype(np.int32)
    x = rng.standard_normal((ROWS, 128)).astype(np.float32)
    y = {"y": np.zeros((ROWS * SLOTS, K), np.float32)}
    made = run(MoeGather(isa, K, SLOTS, 128, quantized=False), {"tokens": tokens, "x": x}, y, ROWS, 2)
    assert (made["y"] == x[tokens, :K]).all()
    parts = dict(zip(("xq", "xs", "xsum"), quantized(np.ascontiguousarray(x[:, :K])), strict=True))
    given = {"tokens": tokens, **{f"from_{name}": part for name, part in parts.items()}}
    empty = {name: np.zeros((ROWS * SLOTS, part.shape[1]), part.dtype) for name, part in parts.items()}
    made = run(MoeGather(isa, K, SLOTS, 128, quantized=True), given, empty, ROWS, 2)
    assert all((made[name] == part[tokens]).all() for name, part in parts.items())


def test_results_are_summed_by_weight_in_the_order_of_slots(run: Runner, isa: Isa) -> None:
    rng = np.random.default_rng(4)
    places = rng.permutation(ROWS * SLOTS).astype(np.int32).reshape(ROWS, SLOTS)
    y = rng.standard_normal((ROWS * SLOTS, STRIDE)).astype(np.float32)
    shared = rng.standard_normal((ROWS, 128)).astype(np.float32)
    for stride in (0, 128):
        kernel = MoeCombine(isa, K, SLOTS, STRIDE, stride)
        weights = rng.random((ROWS, SLOTS + bool(stride))).astype(np.float32)
        parts = np.concatenate([y[places], shared[:, None]] if stride else [y[places]], axis=1)[..., :K]
        expected = (parts.astype(np.float64) * weights[..., None]).sum(1)
        given = {"weights": weights, "y": y, "shared": shared}
        whole = run(kernel, {"places": places, **given}, {"out": np.zeros((ROWS, K), np.float32)}, ROWS, 2)
        assert np.abs(whole["out"] - expected).max() < 1e-5
        one = {**given, "weights": weights[5:6], "shared": shared[5:6], "places": places[5:6]}
        alone = run(kernel, one, {"out": np.zeros((1, K), np.float32)}, 1)
        assert (alone["out"][0] == whole["out"][5]).all()


@dataclass(frozen=True)
class Layer:
    """A layer of experts: its packed weight, and each expert's in f64."""

    kernel: MoeLinear
    packed: Array
    weights: list[Array]

    def inputs(self, x: Array) -> dict[str, Array]:
        """Return rows in the kernel's form."""
        if isinstance(self.kernel.linear, Linear):
            return {"x": x}
        return dict(zip(("xq", "xs", "xsum"), quantized(x), strict=True))

    def expected(self, x: Array, counts: list[int]) -> Array:
        """Return what numpy makes of rows, `counts` of which are each expert's."""
        if not isinstance(self.kernel.linear, Linear):
            codes, scale, _ = quantized(x)
            x = codes * np.repeat(scale, GROUP, 1).astype(np.float64)
        ends = np.cumsum(counts)
        parts = zip(np.split(x, ends[:-1]), self.weights, strict=True)
        return np.concatenate([part.astype(np.float64) @ w.T for part, w in parts])


def layer(kernel: MoeLinear) -> Layer:
    """Return a layer with random weights."""
    rng, one = np.random.default_rng(9), kernel.linear
    packed, weights = [], []
    for _ in range(EXPERTS):
        if isinstance(one, Linear):
            w = rng.standard_normal((N, K)).astype(np.float32)
            packed.append(pack_linear(w, one).view(np.uint8))
            weights.append(w.astype(np.float64))
            continue
        low, high = (0, 16) if one.bits == 4 else (-127, 128)
        q = rng.integers(low, high, (N, K)).astype(np.uint8 if one.bits == 4 else np.int8)
        scale = (rng.random((N, K // GROUP)) * 0.01 + 0.001).astype(np.float16)
        offset = None if one.symmetric else (rng.standard_normal(scale.shape) * 0.01).astype(np.float16)
        packed.append(pack_quant(q, scale, offset, one))
        weights.append(q * spread(scale, GROUP) + (0 if offset is None else spread(offset, GROUP)))
    return Layer(kernel, np.concatenate(packed), weights)


def products(run: Runner, layer: Layer, x: Array, counts: list[int], threads: int = 1) -> Array:
    starts = np.concatenate([[0], np.cumsum(counts), np.zeros(EXPERTS)]).astype(np.int32)
    given = {"w": layer.packed, "starts": starts, **layer.inputs(x)}
    made = run(layer.kernel, given, {"y": np.full((len(x), STRIDE), np.nan, np.float32)}, len(x), threads)
    return made["y"][:, :N]


@pytest.mark.parametrize("counts", [[1, 0, 0, 1, 0, 1], [0, 40, 3, 0, 7, 70]])
def test_each_row_meets_its_own_expert_and_no_bit_depends_on_the_others(
    run: Runner, isa: Isa, counts: list[int]
) -> None:
    x = np.random.default_rng(1).standard_normal((sum(counts), K)).astype(np.float32)
    for one in map(layer, layers(isa)):
        whole = products(run, one, x, counts)
        expected = one.expected(x, counts)
        assert np.abs(whole - expected).max() / np.abs(expected).max() < 1e-6
        for threads in (2, 5):
            assert (products(run, one, x, counts, threads) == whole).all()
        at = 0
        for expert, count in enumerate(counts):
            if count:
                alone = [int(other == expert) for other in range(EXPERTS)]
                assert (products(run, one, x[at : at + 1], alone) == whole[at]).all()
            at += count


def test_many_experts_take_no_more_stack_than_one(load_kernels: Any, align: Callable[[Array], Array]) -> None:
    isa, experts, columns = host_isa(), 1000, 768  # 24 KiB an expert: 24 MiB are more than a stack has
    one = QuantLinear(isa, 32, columns, 8, symmetric=True, bias=False, y_stride=32)
    kernel = MoeLinear(one, experts)
    run = Runner(load_kernels([kernel], isa), align)
    q = np.ones((32, columns), np.int8)
    packed = np.tile(pack_quant(q, np.ones((32, columns // GROUP), np.float16), None, one), experts)
    starts = np.concatenate([np.arange(experts + 1), np.zeros(experts)]).astype(np.int32)
    parts = dict(zip(("xq", "xs", "xsum"), quantized(np.ones((experts, columns), np.float32)), strict=True))
    empty = {"y": np.zeros((experts, 32), np.float32)}
    made = run(kernel, {"w": packed, "starts": starts, **parts}, empty, experts)
    assert np.abs(made["y"] - columns).max() < 1e-2
