"""rotate-residual before and after."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from inline_snapshot import snapshot

from tests.passes.graphs import FAMILIES, agree, body, decoder, decoder_feeds, program
from tests.passes.tiny import tiny_program
from tests.tiny_models import tiny_folder
from tokc.errors import PassFailed
from tokc.importers import import_model
from tokc.ir.execute import execute
from tokc.ir.ops import make_node
from tokc.ir.program import Program
from tokc.ir.rewrite import collect_remarks, initializer
from tokc.ir.verify import verify
from tokc.passes.quantization.grid import Grid
from tokc.passes.quantization.pack import pack
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.passes.rotate_residual import RotateResidual
from tokc.passes.rotation.orthogonal import Rotation
from tokc.pipeline import Pipeline
from tokc.quality.divergence import logits

FUSED = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention"
MERGED = f"{FUSED},fuse-qkv,fuse-gate-up"
TEXT = """g (int64[s] ids) => (float[s,5] logits)
    <float[5,8] e, float[8] g, float[12,8] w, float[8,12] o, float[8] b> {
    x = Gather <axis = 0> (e, ids)
    n = RMSNormalization <axis = -1, epsilon = 1e-6> (x, g)
    u = tokc.Linear (n, w)
    a = Sigmoid (u)
    d = tokc.Linear (a, o, b)
    y = Add (x, d)
    z = RMSNormalization <axis = -1, epsilon = 1e-6> (y, g)
    logits = tokc.Linear (z, e)
}"""


def text_program(text: str) -> Program:
    parsed = program(text)
    return replace(parsed, config=replace(parsed.config, hidden=8))


def test_the_stream_turns_and_a_tied_table_becomes_two() -> None:
    before = text_program(TEXT)
    after = RotateResidual().run(before)
    assert body(after) == snapshot("""\
g (int64[s] ids) => (float[s,5] logits) \n\
   <float[8] g =  {1,1,1,1,1,1,1,1}, float[5,8] "lm_head.weight", float[8,12] o, float[12,8] w, float[5,8] e, float[8] b>
{
   x = Gather <axis: int = 0> (e, ids)
   n = RMSNormalization <axis: int = -1, epsilon: float = 1e-06> (x, g)
   u = tokc.Linear (n, w)
   a = Sigmoid (u)
   d = tokc.Linear (a, o, b)
   y = Add (x, d)
   z = RMSNormalization <axis: int = -1, epsilon: float = 1e-06> (y, g)
   logits = tokc.Linear (z, "lm_head.weight")
}\
""")  # noqa: E501
    agree(before, after, {"ids": np.array([0, 3, 1])})


def test_weights_take_in_the_norm_and_the_rotation() -> None:
    before = text_program(TEXT)
    old, new = (arrays(one) for one in (before, RotateResidual().run(before)))
    turn = Rotation(8).matrix()
    expected = {
        "e": old["e"] @ turn,
        "lm_head.weight": (old["e"] * old["g"]) @ turn,
        "w": (old["w"] * old["g"]) @ turn,
        "o": turn.T @ old["o"],
        "b": turn.T @ old["b"],
        "g": np.ones(8),
    }
    assert new.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(new[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def arrays(of: Program) -> dict[str, np.ndarray]:
    values = of.graph.initializers.items()
    return {
        name: np.asarray(value.const_value.numpy(), np.float64) for name, value in values if value.const_value
    }


@pytest.mark.parametrize("passes", [FUSED, MERGED, f"{MERGED},fuse-add-rms-norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_answers_alike_and_turns_its_heads(family: str, passes: str) -> None:
    before = Pipeline.parse(passes).run(decoder(family))
    feeds = decoder_feeds(before, past=0)
    expected = execute(before, feeds)
    for heads in (True, False):
        with collect_remarks() as missed:
            after = RotateResidual(heads=heads, seed=5).run(before)
        assert missed == []
        verify(after)
        found = execute(after, feeds)
        largest = np.abs(expected["logits"]).max()
        assert np.abs(found["logits"] - expected["logits"]).max() < 1e-5 * largest
        assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
        moved = np.abs(found["present.0.value"] - expected["present.0.value"]).max()
        assert (moved > 0.01) == heads
        assert not after.config.tied_embedding
        nothing_on_channels(after)


def nothing_on_channels(of: Program) -> None:
    for node in of.graph:
        if (
            node.op_type in {"RMSNormalization", "AddRmsNorm"}
            and node.inputs[-1].shape[0] == of.config.hidden
        ):
            assert (node.inputs[-1].const_value.numpy() == 1).all()


def test_a_cached_step_answers_alike() -> None:
    before = tiny_program(merged=False, normed=True)
    ids = np.random.default_rng(0).integers(0, 96, (2, 9))
    expected, found = (logits(one, ids, cached_from=5) for one in (before, RotateResidual().run(before)))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_weight_on_a_grid_leaves_it() -> None:
    before = Pipeline.parse(MERGED).run(on_a_grid(decoder("smollm2")))
    assert "BlockDequantize" in [node.op_type for node in before.graph]
    after = RotateResidual().run(before)
    assert "BlockDequantize" not in [node.op_type for node in after.graph]
    verify(after)
    feeds = decoder_feeds(before, past=0)
    expected, found = (execute(one, feeds)["logits"] for one in (before, after))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    quantized = QuantizeWeights(bits=8).run(after)
    assert "lm_head.weight.q" in quantized.graph.initializers


def on_a_grid(of: Program) -> Program:
    copy, grid = of.copy(), Grid(4, 32, symmetric=False)
    for name in [name for name in copy.graph.initializers if name.endswith(("proj.weight", "tokens.weight"))]:
        plain = copy.graph.initializers[name]
        assert plain.const_value is not None
        packed = pack(name, grid.quantize(plain.const_value.numpy()))
        values = [
            initializer(one, str(one.name)) for one in (packed.codes, packed.scale, packed.offset) if one
        ]
        node = make_node("BlockDequantize", values, {"zero_point": 0, "block_size": 32})
        plain.replace_all_uses_with(node.outputs[0])
        del copy.graph.initializers[name]
        node.outputs[0].name = name
        copy.graph.insert_before(copy.graph[0], node)
        for value in values:
            copy.graph.register_initializer(value)
    return copy


def test_no_weight_is_read_before_its_rotation_is() -> None:
    before = text_program(TEXT)
    reads = []
    for name, value in before.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None

        def read(name: str = name, tensor: ir.TensorProtocol = tensor) -> ir.TensorProtocol:
            reads.append(name)
            return ir.tensor(tensor)

        value.const_value = ir.LazyTensor(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))
    after = RotateResidual().run(before)
    assert reads == []
    arrays(after)
    assert sorted(reads) == ["b", "e", "e", "g", "g", "o", "w"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("d = tokc.Linear (a, o, b)", "c = tokc.Linear (a, o, b)\n d = RMSNormalization (c, b)",
         "'RMSNormalization' writes to 'd'; its weight scales single channels"),
        ("n = RMSNormalization <axis = -1, epsilon = 1e-6> (x, g)", "n = LayerNormalization (x, g)",
         "'LayerNormalization' reads 'x'; it takes the mean off"),
        ("y = Add (x, d)", "y = Mul (x, d)", "'Mul' reads 'x'"),
        ("a = Sigmoid (u)", "a = Add (u, n)", "'Add' reads 'n'"),
        ("y = Add (x, d)", "c = Add (x, d)\n y = Add (c, b)", "an input writes to 'b'"),
    ],
)  # fmt: skip
def test_what_computes_on_single_channels_is_refused(old: str, new: str, problem: str) -> None:
    text = TEXT.replace(old, new).replace("float[12,8] w", "float[8,8] w").replace("[8,12] o", "[8,8] o")
    assert new in text
    with pytest.raises(PassFailed, match=problem):
        RotateResidual().run(text_program(text))


def test_a_program_that_was_not_fused_yet_names_the_pass_to_run() -> None:
    with pytest.raises(PassFailed, match="'MatMul' reads") as caught:
        RotateResidual().run(decoder("llama"))
    assert caught.value.hint is not None
    assert "fuse-linear" in caught.value.hint


@pytest.mark.parametrize("family", ["llama_bias", "llama3"])
def test_models_of_transformers_answer_alike(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    before = Pipeline.parse(MERGED).run(import_model(tiny_folder(family, tmp_path)))
    ids = np.random.default_rng(0).integers(3, 96, (2, 20))
    expected, found = (logits(one, ids) for one in (before, RotateResidual().run(before)))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_gemma_3_scales_what_it_adds_and_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    before = Pipeline.parse(MERGED).run(import_model(tiny_folder("gemma3", tmp_path)))
    with pytest.raises(PassFailed, match=r"'RMSNormalization' writes to .*can be folded nowhere"):
        RotateResidual().run(before)
