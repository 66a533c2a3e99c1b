"""attach-draft before and after, and what later passes do to a draft beside its backbone."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.heads_of_drafts import eagle_heads, medusa_heads, saved
from tests.passes.graphs import decoder
from tokc.errors import ImportRefused, PassFailed
from tokc.instruments import Instruments
from tokc.ir.execute import execute
from tokc.ir.head import head_of
from tokc.ir.program import Program
from tokc.ir.text import render
from tokc.ir.verify import verify
from tokc.passes.attach_draft import AttachDraft, heads_in
from tokc.passes.fuse_linear import FuseLinear
from tokc.passes.rotate_residual import RotateResidual
from tokc.pipeline import Pipeline, pass_text
from tokc.quality.calibration import Calibration, calibrating
from tokc.quality.running import draft_logits, feeds_of, fixed_ids
from tokc.targets.base import Precision, pass_list

GOLDEN = Path(__file__).parents[1] / "golden"
SOME = np.array([0, 3, 4, 5, 9, 17, 22, 31, 38, 39])
QUERIES = (32, 16)


def attached(path: Path, family: str = "llama", **options: object) -> Program:
    """Return a tiny decoder with an eagle."""
    saved(eagle_heads(32, QUERIES, intermediate=64, **options), path / "eagle.safetensors")  # type: ignore[arg-type]
    with heads_in(path):
        return AttachDraft("eagle.safetensors").run(decoder(family))


def stages(path: Path) -> dict[str, str]:
    """Return the golden texts: the draft as it is attached, and as the passes leave it in 4 bits."""
    program = attached(path, vocabulary=SOME)
    lowered = Pipeline.parse(pass_list(Precision("int4", kv="f16"))).run(program)
    assert program.draft is not None
    assert lowered.draft is not None
    return {
        "draft_eagle_attached.txt": render(program.draft.program),
        "draft_eagle_int4.txt": render(lowered.draft.program),
    }


def test_the_stages_of_a_draft_are_the_golden_ones(tmp_path: Path) -> None:
    for name, text in stages(tmp_path).items():
        assert text == (GOLDEN / name).read_text(), name


def test_the_backbone_gains_features_and_nothing_else(tmp_path: Path) -> None:
    before, after = decoder("llama"), attached(tmp_path)
    verify(after)
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
    ids = fixed_ids(before, 1, 7)
    plain, exposed = (execute(program, feeds_of(program, ids)) for program in (before, after))
    np.testing.assert_array_equal(exposed["logits"], plain["logits"])
    assert set(exposed) - set(plain) == {"features"}


@pytest.mark.parametrize("vocabulary", [None, SOME])
def test_embedding_and_head_of_a_quantized_draft_are_the_backbones(
    vocabulary: np.ndarray | None, tmp_path: Path
) -> None:
    passes = Pipeline.parse("fuse-linear,quantize-weights{bits=4 symmetric=false}")
    program = passes.run(attached(tmp_path, vocabulary=vocabulary))
    assert program.draft is not None
    theirs, mine = (head_of(graph) for graph in (program.graph, program.draft.program.graph))
    assert mine.op_type == "QuantLinear"
    for own, whole in zip(mine.inputs[1:], theirs.inputs[1:], strict=True):
        if own is None or whole is None:
            assert own is whole
            continue
        rows = whole.const_value.numpy()  # type: ignore[union-attr]
        picked = rows if vocabulary is None else rows[vocabulary]
        np.testing.assert_array_equal(own.const_value.numpy(), picked)  # type: ignore[union-attr]
    name = "model.embed_tokens.weight.q"
    tables = [one.graph.initializers[name].const_value for one in (program, program.draft.program)]
    assert tables[0] is tables[1]


def test_every_pass_is_recorded_and_checked_on_the_draft(tmp_path: Path) -> None:
    saved(medusa_heads(32, 3, vocabulary=SOME), tmp_path / "medusa.safetensors")
    instruments = Instruments()
    passes = f"attach-draft{{heads=medusa.safetensors}},{pass_list(Precision('int8', kv='f16'))}"
    with heads_in(tmp_path):
        program = instruments.run(Pipeline.parse(passes), decoder("smollm2"))
    rows = {row.pass_spec.partition("{")[0]: row for row in instruments.draft_ledger}
    assert list(rows) == ["attach-draft", "fuse-linear", "quantize-weights", "kv-layout"]
    assert rows["attach-draft"].nodes_before == 0
    rounding = rows["quantize-weights"]
    assert rounding.kl_mean is not None
    assert 0 < rounding.kl_mean < 0.1
    assert rounding.weight_bytes_after < rounding.weight_bytes_before / 2
    assert program.draft is not None
    assert program.draft.program.weight_bytes(besides=program) == rows["kv-layout"].weight_bytes_after


def codes(program: Program, name: str) -> np.ndarray:
    """Return a weight's codes."""
    tensor = program.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy()).astype(np.int32)


@pytest.mark.parametrize("kind", ["eagle", "medusa"])
def test_drafts_may_be_asked_for_trees(kind: str, tmp_path: Path) -> None:
    tensors = eagle_heads(32, QUERIES) if kind == "eagle" else medusa_heads(32, 2)
    saved(tensors, tmp_path / "heads.safetensors")
    passes = f"attach-draft{{heads=heads.safetensors}},{pass_list(Precision('f32', kv='f32'))}"
    with heads_in(tmp_path):
        plain = Pipeline.parse(passes).run(decoder("llama"))
    trees = Pipeline.parse("admit-trees").run(plain)
    verify(trees)
    assert plain.draft is not None
    assert trees.draft is not None
    ids, features = fixed_ids(plain, 1, 6), np.ones((1, 6, 32), np.float32)
    found, wanted = (draft_logits(one.draft.program, ids, features) for one in (trees, plain))  # type: ignore[union-attr]
    np.testing.assert_array_equal(found, wanted)


def test_a_pass_that_breaks_the_draft_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = FuseLinear.run

    def breaks(self: FuseLinear, program: Program) -> Program:
        after = honest(self, program)
        bias = after.graph.initializers.get("draft.fc.bias")
        if bias is not None and bias.const_value is not None:
            bias.const_value = ir.tensor(bias.const_value.numpy() + 1, name="draft.fc.bias")
        return after

    program = attached(tmp_path)
    instruments = Instruments()
    monkeypatch.setattr(FuseLinear, "run", breaks)
    passes = "attach-draft{heads=eagle.safetensors},fuse-linear"
    with heads_in(tmp_path), pytest.raises(PassFailed, match="pass 2 of 2, fuse-linear, changed the answers"):
        instruments.run(Pipeline.parse(passes), decoder("llama"))
    assert program.draft is not None


def test_calibrated_methods_round_a_draft_without_text(tmp_path: Path) -> None:
    program = Pipeline.parse("fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up").run(attached(tmp_path))
    with calibrating(Calibration(ids=fixed_ids(program, 2, 16))):
        fitted = Pipeline.parse("quantize-weights{bits=4 method=gptq}").run(program)
    rounded = Pipeline.parse("quantize-weights{bits=4 method=rtn-mse}").run(program)
    layer = "model.layers.0.mlp.down_proj.weight.q"
    assert (codes(fitted, layer) != codes(rounded, layer)).any()
    assert fitted.draft is not None
    assert rounded.draft is not None
    name = "draft.layers.0.mlp.down_proj.weight.q"
    np.testing.assert_array_equal(codes(fitted.draft.program, name), codes(rounded.draft.program, name))


def test_a_second_draft_and_a_turned_stream_are_refused(tmp_path: Path) -> None:
    program = attached(tmp_path)
    with heads_in(tmp_path), pytest.raises(PassFailed, match="has a draft already"):
        AttachDraft("eagle.safetensors").run(program)
    with pytest.raises(PassFailed, match="would turn the features that a draft reads"):
        RotateResidual().run(Pipeline.parse("fuse-linear").run(program))


def test_heads_that_are_not_there_are_refused() -> None:
    with pytest.raises(ImportRefused, match="there is no file or folder 'nowhere"):
        AttachDraft("nowhere.safetensors").run(decoder("llama"))


def test_a_path_is_spelled_by_its_name_and_reads_back() -> None:
    named = AttachDraft.of_file(Path("/somewhere/my heads, 2.safetensors"))
    assert Pipeline.parse(pass_text(named)).passes == (named,)
    assert named.path == Path("my heads, 2.safetensors")
