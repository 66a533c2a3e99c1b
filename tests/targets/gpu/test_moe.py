"""Choosing, grouping and combining of experts against numpy; no batch changes a token's bits."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import Array, info, interpret
from tokc.errors import TargetRefused
from tokc.targets.gpu.kernels.moe import MoeCombine, MoeGroup, MoeRoute, MoeScores

UNTOUCHED = 7.0


def scores_of(kernel: MoeScores, x: Array, weight: Array, count: int) -> npt.NDArray[np.float32]:
    scores = np.full((len(x), kernel.experts), UNTOUCHED, np.float32)
    given = {"x": x, "weight": weight, "info": info(tokens=count), "scores": scores}
    interpret(kernel, given, {"tokens": len(x)})
    return scores


def routed(
    kernel: MoeRoute, scores: Array, count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    experts = np.full((len(scores), kernel.top_k), -7, np.int32)
    weights = np.full((len(scores), kernel.top_k + kernel.shared), UNTOUCHED, np.float32)
    given = {"scores": scores, "info": info(tokens=count), "experts": experts, "weights": weights}
    interpret(kernel, given, {"tokens": len(scores)})
    return experts, weights


def grouped(kernel: MoeGroup, experts: Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return starts and order; `order` has room for one token more than there are."""
    starts = np.full(kernel.experts + 1, -7, np.int32)
    order = np.full((len(experts) + 1) * kernel.top_k, -7, np.int32)
    given = {"experts": experts, "info": info(tokens=len(experts)), "starts": starts, "order": order}
    interpret(kernel, given, {})
    return starts, order


@pytest.mark.parametrize(("experts", "width", "tokens"), [(5, 64, 19), (128, 200, 3)])
def test_scores_are_the_products_in_f32(experts: int, width: int, tokens: int) -> None:
    rng = np.random.default_rng(experts)
    x = rng.normal(0, 1, (tokens, width + 8)).astype(np.float32)
    weight = rng.normal(0, 1, (experts, width)).astype(np.float32)
    x[-1] = np.nan
    found = scores_of(MoeScores(experts, width, width + 8), x, weight, tokens - 1)
    expected = x[:-1, :width].astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(
        found[:-1], expected, rtol=0, atol=2e-6 * width**0.5 * np.abs(x[:-1]).max() * 4
    )
    assert (found[-1] == UNTOUCHED).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("experts", "top_k", "shared"), [(5, 2, False), (6, 3, True), (128, 8, False), (3, 1, True)]
)
def test_the_largest_scores_are_chosen_and_weighed(
    experts: int, top_k: int, shared: bool, normalize: bool
) -> None:
    rng = np.random.default_rng(top_k)
    scores = rng.normal(0, 2, (9, experts + shared)).astype(np.float32)
    chosen, weights = routed(MoeRoute(experts, top_k, normalize, shared), scores, 8)
    own = scores[:8, :experts].astype(np.float64)
    expected = np.argsort(-own, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(chosen[:8], expected)
    part = np.exp(np.take_along_axis(own, expected, 1))
    whole = part.sum(1) if normalize else np.exp(own).sum(1)
    np.testing.assert_allclose(weights[:8, :top_k], part / whole[:, None], rtol=1e-5)
    if shared:
        np.testing.assert_allclose(weights[:8, top_k], 1 / (1 + np.exp(-scores[:8, -1])), rtol=1e-5)
    assert (chosen[8] == -7).all()
    assert (weights[8] == UNTOUCHED).all()


def test_of_equal_scores_the_lower_expert_is_chosen_and_nan_last() -> None:
    scores = np.zeros((3, 6), np.float32)
    scores[0, [4, 1]] = 1
    scores[1] = [np.nan, -3, np.nan, -np.inf, -5, np.nan]
    scores[2] = np.nan
    with np.errstate(invalid="ignore"):
        chosen, _ = routed(MoeRoute(6, 3, normalize=True, shared=False), scores, 3)
    np.testing.assert_array_equal(chosen, [[1, 4, 0], [1, 4, 0], [0, 1, 2]])


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(5, 2, 1), (8, 3, 40), (64, 8, 200)])
def test_slots_are_sorted_by_expert_in_their_own_order(experts: int, top_k: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    chosen = np.stack([rng.permutation(experts)[:top_k] for _ in range(tokens)]).astype(np.int32)
    starts, order = grouped(MoeGroup(experts, top_k), chosen)
    flat = chosen.reshape(-1)
    np.testing.assert_array_equal(order[: flat.size], np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(starts, np.searchsorted(np.sort(flat), np.arange(experts + 1)))
    assert (order[flat.size :] == -7).all()


@pytest.mark.parametrize("shared", [False, True])
def test_slots_are_summed_by_weight(shared: bool) -> None:
    rng = np.random.default_rng(3)
    kernel = MoeCombine(600, 3, 608 if shared else 0)
    y = rng.normal(0, 1, (4, 3, 600)).astype(np.float32)
    weights = rng.uniform(0, 1, (4, 3 + shared)).astype(np.float32)
    own = rng.normal(0, 1, (4, 608)).astype(np.float32)
    out = np.full((4, 600), UNTOUCHED, np.float32)
    given = {"y": y, "weights": weights, "info": info(tokens=3), "out": out}
    interpret(kernel, {**given, **({"shared": own} if shared else {})}, {"tokens": 4})
    expected = np.einsum("tj,tjw->tw", weights[:, :3].astype(np.float64), y)
    if shared:
        expected += weights[:, 3:] * own[:, :600].astype(np.float64)
    np.testing.assert_allclose(out[:3], expected[:3], rtol=0, atol=3e-6)
    assert (out[3] == UNTOUCHED).all()


def test_more_experts_than_a_program_chooses_from_are_refused() -> None:
    with pytest.raises(TargetRefused, match="a layer of 2000 experts is wider than 1024"):
        MoeScores(2000, 64, 64)
