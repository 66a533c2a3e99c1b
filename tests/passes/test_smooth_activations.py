"""Channels scaled before their weights: exact in f32, and nearer once rounded."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.tiny_models import tiny_folder
from tokc.importers import import_model
from tokc.ir.program import Program
from tokc.ir.rewrite import collect_remarks
from tokc.passes.quantization.awq import ClippedRounding
from tokc.passes.quantization.grid import F32, Grid
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.passes.smooth_activations import SmoothActivations
from tokc.passes.smoothing.search import BothRounded, WeightsRounded
from tokc.passes.smoothing.sites import Site
from tokc.pipeline import Pipeline
from tokc.quality.calibration import Calibration, Statistics, calibrating
from tokc.quality.divergence import divergence, logits

FUSED = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up"
IDS = np.random.default_rng(0).integers(0, 96, (8, 40))


def _program(family: str, folder: Path) -> Program:
    """Return a tiny model in which a few channels of each norm are large, as in real ones."""
    program = Pipeline.parse(FUSED).run(import_model(tiny_folder(family, folder))).copy()
    for name, value in program.graph.initializers.items():
        if name.endswith("norm.weight") and value.const_value is not None:
            weight = np.array(value.const_value.numpy())
            weight[::9] *= 12
            value.const_value = ir.tensor(weight, name=name)
    return program


@pytest.mark.parametrize("family", ["llama", "qwen2", "llama3", "gemma3", "smollm2"])
@pytest.mark.parametrize("search", ["weights", "both"])
def test_logits_stay(family: str, search: str, tmp_path: Path) -> None:
    program = _program(family, tmp_path)
    with calibrating(Calibration(ids=IDS)), collect_remarks() as missed:
        after = SmoothActivations(search=search, bits=3).run(program)  # type: ignore[arg-type]
    assert after is not program
    reference, answers = logits(program, IDS), logits(after, IDS)
    np.testing.assert_allclose(answers, reference, atol=1e-4 * np.abs(reference).max(), rtol=0)
    changed = {
        name.removeprefix("model.layers.0.")
        for name, value in after.graph.initializers.items()
        if value.const_value is not program.graph.initializers[name].const_value and ".0." in name
    }
    assert {"self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"} <= changed
    if family == "llama":
        norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
        assert changed >= norms | {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
        assert len(missed) == 1  # the norm before the head


def test_awq_is_nearer_than_rounding_to_nearest(tmp_path: Path) -> None:
    program = _program("llama", tmp_path)
    reference, kl = logits(program, IDS), {}
    with calibrating(Calibration(ids=IDS)):
        for method in ("rtn", "awq"):
            pass_ = QuantizeWeights(bits=4, method=method, act_group=0)  # type: ignore[arg-type]
            kl[method] = divergence(reference, logits(pass_.run(program), IDS)).kl_mean
    assert kl["awq"] < 0.8 * kl["rtn"]


def test_smoothing_helps_int8_weights_and_activations(tmp_path: Path) -> None:
    program = _program("llama", tmp_path)
    reference = logits(program, IDS)
    with calibrating(Calibration(ids=IDS)):
        smooth = SmoothActivations(search="both", bits=8, act_group=64).run(program)
    kl = [
        divergence(reference, logits(QuantizeWeights(bits=8, act_group=64).run(one), IDS)).kl_mean
        for one in (program, smooth)
    ]
    assert kl[1] < 0.8 * kl[0]


def test_weights_that_keep_their_grid_are_left_alone(tmp_path: Path) -> None:
    program = _program("llama", tmp_path)
    with calibrating(Calibration(ids=IDS)):
        stored = _on_their_grid(program)
        assert SmoothActivations().run(stored) is stored
        assert SmoothActivations(bits=3, requantize=True).run(stored) is not stored


def _on_their_grid(program: Program) -> Program:
    """Return the program with all linear weights as a file of Q4_0 would hold them."""
    from tests.passes.test_quantize_weights import _stored

    names = [name for name in program.graph.initializers if name.endswith("proj.weight")]
    return _stored(program, names, Grid(4, 32))


def _layer(seed: int = 0) -> tuple[F32, Statistics]:
    random = np.random.default_rng(seed)
    x = (random.normal(size=(300, 72)) * np.where(np.arange(72) % 9, 1, 15)).astype(np.float32)
    mean, largest = np.abs(x).mean(0), np.abs(x).max(0)
    w = random.normal(size=(24, 72)).astype(np.float32)
    return w, Statistics(x.T @ x, mean, 300, largest, x[::3])


def test_the_chosen_scale_errs_less_than_none_in_f64() -> None:
    w, statistics = _layer()
    grid, x = Grid(4, 32), statistics.sample.astype(np.float64)
    scale = WeightsRounded(grid).best(Site(()), [w], statistics)
    assert scale is not None
    errors = []
    for s in (np.ones(72, np.float32), scale):
        rounded = grid.dequantize(grid.quantize(w * s)).astype(np.float64) / s
        errors.append(np.square(x @ (rounded - w).T).sum())
    assert errors[1] < 0.8 * errors[0]
    both = BothRounded(Grid(8, 32), act_group=72).best(Site(()), [w], statistics)
    assert both is not None
    assert both[0] / both[1] > 1.5  # the weight takes what the large channel of the activation had


def test_heads_that_share_v_have_one_scale() -> None:
    site = Site((), shared=2, dim=3)
    scale = site.together(np.arange(12, dtype=np.float32))
    assert scale.tolist() == [3, 4, 5, 3, 4, 5, 9, 10, 11, 9, 10, 11]
    assert site.written(scale).tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 32, symmetric=False), Grid(2, 16)], ids=repr)
def test_clipping_errs_less_in_every_row(grid: Grid) -> None:
    w, statistics = _layer()
    clipped, nearest = ClippedRounding().quantize(w, grid, statistics), grid.quantize(w)
    errors = [statistics.error(grid.dequantize(one) - w) for one in (clipped, nearest)]
    assert (errors[0] <= errors[1]).all()
    assert errors[0].sum() < errors[1].sum()
