"""cast-weights before and after."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import body, program
from tests.passes.tiny import VOCAB, tiny_program
from tokc.errors import PassFailed, TargetRefused
from tokc.ir.execute import execute
from tokc.ir.ops import node_cost
from tokc.ir.verify import verify
from tokc.passes.cast_weights import CastWeights
from tokc.passes.quantization.float_grid import float_grid
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.pipeline import Pipeline
from tokc.quality.divergence import divergence
from tokc.quality.running import logits
from tokc.targets.base import Limits
from tokc.targets.table import TARGETS

IDS = np.random.default_rng(0).integers(0, VOCAB, (2, 13))
EIGHT = ["e4m3", "e5m2"]
FORMATS = [*EIGHT, "mxfp4", "nvfp4"]
TEXT = """g (float[s,70] x) => (float[s,6] y) <float[6,70] w, float[6] b> {
    h = Sigmoid (x)
    z = tokc.Linear (h, w, b)
    y = Sigmoid (z)
}"""


def test_a_linear_reads_codes_block_scales_and_the_tensors_scale() -> None:
    assert body(CastWeights(format="nvfp4").run(program(TEXT))) == snapshot("""\
g (float[s,70] x) => (float[s,6] y) \n\
   <float[6] b, uint4[6,70] "w.q", float8e4m3fn[6,5] "w.scale", float[1] "w.tensor_scale">
{
   h = Sigmoid (x)
   [node_QuantLinear_0] z = tokc.QuantLinear <format: string = "nvfp4", block_size: int = 16, act_group: int = 0> (h, "w.q", "w.scale", "", b, "w.tensor_scale")
   y = Sigmoid (z)
}\
""")  # noqa: E501


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        *((name, one) for name in EIGHT for one in ("tensor", "channel", "block")),
        *((name, "auto") for name in FORMATS),
    ],
)
def test_onnxruntime_computes_what_ml_dtypes_says_the_codes_are(name: str, scales: str) -> None:
    before = program(TEXT.replace("[6,70]", "[300,70]").replace("[6]", "[300]").replace("s,6]", "s,300]"))
    after = CastWeights(format=name, scales=scales).run(before)
    verify(after)
    values = {key: value.const_value for key, value in before.graph.initializers.items()}
    w, b = (values[key].numpy().astype(np.float32) for key in ("w", "b"))
    grid = float_grid(name, scales, "rtn", w.shape)
    near = grid.dequantized(grid.quantize(w)).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    h = 1 / (1 + np.exp(-x.astype(np.float64)))
    want = 1 / (1 + np.exp(-(h @ near.T + b)))
    np.testing.assert_allclose(execute(after, {"x": x})["y"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["rtn", "rtn-mse"])
@pytest.mark.parametrize("name", FORMATS)
def test_answers_move_by_less_than_the_format_allows(name: str, method: str) -> None:
    before = tiny_program(merged=False)
    pass_ = CastWeights(format=name, method=method, head=True)
    after = pass_.run(before)
    verify(after)
    ops = [node.op_type for node in after.graph]
    assert not {"Linear", "Gather"} & set(ops)
    assert 0 < divergence(logits(before, IDS), logits(after, IDS)).kl_mean < pass_.max_kl
    assert {"q.weight.q", "q.bias", "k.weight.scale"} <= set(after.graph.initializers)


def test_finer_formats_are_nearer() -> None:
    before = tiny_program()
    reference = logits(before, IDS)
    programs = [CastWeights(format=name).run(before) for name in FORMATS]
    kl = [divergence(reference, logits(one, IDS)).kl_mean for one in programs]
    e4m3, e5m2, mxfp4, nvfp4 = kl
    assert e4m3 < e5m2 < nvfp4 < mxfp4


@pytest.mark.parametrize(("name", "bits"), [("e4m3", 8.5), ("e5m2", 8.5), ("mxfp4", 4.25), ("nvfp4", 4.5)])
def test_weights_are_priced_at_their_bits(name: str, bits: float) -> None:
    before = tiny_program()
    after = CastWeights(format=name, head=True).run(before)
    (linear,) = (node for node in after.graph if node.outputs[0].name == "o")
    (old,) = (node for node in before.graph if node.outputs[0].name == "o")
    saved = node_cost(old, 1, 8).bytes - node_cost(linear, 1, 8).bytes
    whole = 4 if name == "nvfp4" else 0
    assert saved == 64 * 64 * (32 - bits) / 8 - whole
    (embedding,) = (node for node in after.graph if node.op_type == "QuantEmbedding")
    assert node_cost(embedding, 1, 8).bytes == 64 * bits / 8 + 64 * 4


def test_embedding_and_head_are_left_to_another_pass() -> None:
    after = Pipeline.parse("cast-weights{format=mxfp4},quantize-weights{head_bits=8}").run(tiny_program())
    kinds = {str(name): value.dtype for name, value in after.graph.initializers.items()}
    assert kinds["o.weight.q"] == ir.DataType.UINT4
    assert kinds["o.weight.scale"] == ir.DataType.UINT8
    assert kinds["model.embed_tokens.weight.q"] == ir.DataType.INT8
    verify(after)


def test_a_program_without_plain_weights_is_left_alone() -> None:
    quantized = QuantizeWeights().run(tiny_program())
    assert CastWeights(head=True).run(quantized) is quantized


def test_a_weight_that_is_not_finite_is_named() -> None:
    before = tiny_program()
    tensor = before.graph.initializers["o.weight"].const_value
    assert tensor is not None
    tensor.numpy()[3, 5] = np.inf
    scale = CastWeights().run(before).graph.initializers["o.weight.scale"].const_value
    assert scale is not None
    with pytest.raises(PassFailed, match="not finite") as caught:
        scale.numpy()
    assert caught.value.where == "weight 'o.weight'"


def test_scales_that_a_format_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="format 'mxfp4' has a scale a block, not one a channel"):
        CastWeights(format="mxfp4", scales="channel")


@pytest.mark.parametrize("kind", sorted(TARGETS))
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("format=mxfp4", "weights in 'mxfp4'; nearest are int4 group 32, int8"),
        ("format=e5m2", "weights in 'e5m2'; nearest are int8"),
        ("format=e4m3", "in 'e4m3'.*; nearest are int8"),
        ("format=e4m3 head=true activations=e4m3", "weights in 'e4m3'; nearest are int8"),
    ],
)
def test_a_target_without_a_kernel_names_what_is_nearest(kind: str, options: str, problem: str) -> None:
    text = f"cast-weights{{{options}}},fuse-add-rms-norm,kv-layout{{dtype=f16}},eliminate-dead-code"
    after = Pipeline.parse(text).run(tiny_program())
    target = TARGETS[kind]
    with pytest.raises(TargetRefused, match=problem):
        target.lower(after, target.devices()[0].name, Limits(context=64))


def test_a_gpu_without_a_unit_for_fp8_and_scales_without_a_kernel_are_refused() -> None:
    rest = "fuse-add-rms-norm,kv-layout{dtype=f16},eliminate-dead-code"
    rounded = Pipeline.parse(f"cast-weights{{format=e4m3 activations=e4m3}},{rest}").run(tiny_program())
    with pytest.raises(TargetRefused, match="'sm_80' has no matrix unit for weights in 'e4m3'"):
        TARGETS["cuda"].lower(rounded, "sm_80", Limits(context=64))
    plain = Pipeline.parse(f"cast-weights{{format=e4m3}},{rest}").run(tiny_program())
    with pytest.raises(TargetRefused, match="with activations in e4m3, not f16"):
        TARGETS["cuda"].lower(plain, "sm_90", Limits(context=64))


def test_activations_are_rounded_to_e4m3_one_scale_a_row() -> None:
    before = program(TEXT)
    after = CastWeights(format="e4m3", activations="e4m3").run(before)
    verify(after)
    values = {key: value.const_value for key, value in before.graph.initializers.items()}
    w, b = (values[key].numpy().astype(np.float32) for key in ("w", "b"))
    grid = float_grid("e4m3", "auto", "rtn", w.shape)
    near_w = grid.dequantized(grid.quantize(w)).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    x[1] = -np.inf  # a row of zeros after the sigmoid
    h = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    step = h.max(axis=1, keepdims=True) / np.float32(448)
    step[1] = 1
    near_h = (h / step).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * step
    want = 1 / (1 + np.exp(-(near_h @ near_w.T + b)))
    np.testing.assert_allclose(execute(after, {"x": x})["y"], want, rtol=1e-3)
    assert np.abs(near_h - h).max() > 1e-3


def test_activations_in_e4m3_want_weights_in_e4m3() -> None:
    with pytest.raises(ValueError, match="activations in e4m3 go with weights in e4m3, a scale a channel"):
        CastWeights(format="mxfp4", activations="e4m3")
