"""Statistics of what linear layers read, against hooks on the same model in transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.tiny_models import tiny_folder
from tokc.errors import PassFailed, TokcError
from tokc.importers import import_model
from tokc.ir.cutting import CutProgram
from tokc.ir.program import Program
from tokc.passes.fuse_add_rms_norm import FuseAddRmsNorm
from tokc.pipeline import Pipeline
from tokc.quality.calibration import Calibration, Statistics, calibrating, calibration, layers
from tokc.quality.divergence import logits

FUSED = "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up"
IDS = np.random.default_rng(0).integers(0, 96, (5, 24))


def _fused(folder: Path) -> Program:
    return Pipeline.parse(FUSED).run(import_model(folder))


def _linears(program: Program) -> list[ir.Node]:
    nodes = [node for node in program.graph if node.op_type == "Linear"]
    return [node for node in nodes if not node.outputs[0].is_graph_output()]


def _read(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def _collected(program: Program, ids: np.ndarray = IDS, threads: int = 2) -> dict[str, Statistics]:
    found = {}
    for layer in layers(program, _linears(program), _read, Calibration(ids=ids, threads=threads)):
        statistics = layer.collect()
        for node in layer.linears:
            assert node.inputs[0] is not None
            assert node.inputs[1] is not None
            found[str(node.inputs[1].name)] = statistics[node.inputs[0]]
    return found


def _hooked(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the Gram matrix and mean magnitude of what each linear layer of transformers reads, in f64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    rows: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, args, __, name=name: rows.update({name: args[0]}))
    with torch.no_grad():
        model(torch.from_numpy(IDS))
    read = {name: x.reshape(-1, x.shape[-1]).double().numpy() for name, x in rows.items()}
    return {f"{name}.weight": (x.T @ x, np.abs(x).mean(0)) for name, x in read.items()}


@pytest.mark.parametrize("family", ["llama", "llama_bias", "qwen2", "gemma3"])
def test_statistics_are_those_of_hooks_in_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path)
    expected, found = _hooked(folder), _collected(_fused(folder))
    assert len(found) == 3 * (5 if family == "llama_bias" else 4)
    for name, statistics in found.items():
        gram, mean_abs = expected[name.replace("qkv_proj", "q_proj").replace("gate_up_proj", "gate_proj")]
        assert statistics.tokens == IDS.size
        np.testing.assert_allclose(statistics.gram, gram, rtol=1e-4, atol=1e-4 * np.abs(gram).max())
        np.testing.assert_allclose(statistics.mean_abs, mean_abs, rtol=1e-4)
        assert (statistics.gram == statistics.gram.T).all()


def test_the_bits_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    program = _fused(tiny_folder("llama", tmp_path, hidden_size=640, num_hidden_layers=1))
    one, three = _collected(program, threads=1), _collected(program, threads=3)
    for name, statistics in one.items():
        assert statistics.gram.tobytes() == three[name].gram.tobytes()
        assert statistics.mean_abs.tobytes() == three[name].mean_abs.tobytes()


def test_later_parts_see_what_became_of_the_weights_before_them(tmp_path: Path) -> None:
    program = _fused(tiny_folder("llama", tmp_path))
    plain = _collected(program)
    linears, seen = _linears(program), {}
    for layer in layers(program, linears, _read, Calibration(ids=IDS)):
        statistics = layer.collect()
        for node in layer.linears:
            assert node.inputs[0] is not None
            assert node.inputs[1] is not None
            seen[str(node.inputs[1].name)] = statistics[node.inputs[0]]
            if node is linears[0]:
                layer.constants[node.inputs[1]] = np.zeros_like(layer.weight(node))
    first, *later = seen
    assert seen[first].gram.tobytes() == plain[first].gram.tobytes()
    mlp = next(name for name in later if "gate_up" in name)
    assert np.abs(seen[mlp].gram - plain[mlp].gram).max() > 0.1 * np.abs(plain[mlp].gram).max()


def test_a_program_is_cut_in_two_parts_a_layer_and_the_embedding(tmp_path: Path) -> None:
    program = _fused(tiny_folder("gemma3", tmp_path))
    cut = CutProgram(program, _linears(program))
    assert len(cut.parts) == 1 + 2 * program.config.layers
    assert [len(part.leaving) for part in cut.parts] == [1] * len(cut.parts)
    masks = [value for index in range(len(cut.parts)) for value in cut.handed_on(index)]
    assert {value.producer().op_type for value in masks if value.producer()} == {"CausalMask"}


def test_sums_fused_with_norms_are_cut_where_both_leave(tmp_path: Path) -> None:
    program = FuseAddRmsNorm().run(_fused(tiny_folder("llama", tmp_path)))
    cut = CutProgram(program, _linears(program))
    assert [len(part.leaving) for part in cut.parts[1:-1]] == [2] * (len(cut.parts) - 2)
    expected = _collected(_fused(tmp_path))
    for name, statistics in _collected(program).items():
        np.testing.assert_allclose(statistics.gram, expected[name].gram, rtol=1e-3, atol=1e-2)


def test_a_graph_whose_layers_share_more_than_the_stream_is_refused(tmp_path: Path) -> None:
    program = _fused(tiny_folder("llama", tmp_path)).copy()
    attentions = [node for node in program.graph if node.op_type == "Attention"]
    attentions[1].replace_input_with(2, attentions[0].inputs[2])
    with pytest.raises(PassFailed, match="no residual stream is found between the attentions"):
        CutProgram(program, _linears(program))


def test_a_part_takes_the_place_of_its_nodes(tmp_path: Path) -> None:
    """The parts run one after another give the logits of the whole."""
    program = _fused(tiny_folder("qwen2", tmp_path))
    everything = [node for node in program.graph if node.op_type == "Linear"]
    cut = CutProgram(program, everything)
    from tokc.ir.execute import execute

    config = program.config
    past = np.zeros((len(IDS), config.kv_heads, 0, config.head_dim), np.float32)
    known: Mapping[str, Any] = {
        **{str(value.name): past for value in program.graph.inputs[2:]},
        "input_ids": IDS,
        "position_ids": np.tile(np.arange(IDS.shape[1]), (len(IDS), 1)),
    }
    for index, part in enumerate(cut.parts):
        leaving = part.leaving or (program.graph.outputs[0],)
        one = cut.program(index, [*leaving, *cut.handed_on(index)], {})
        feeds = {str(value.name): known[str(value.name)] for value in one.graph.inputs}
        known = {**known, **execute(one, feeds)}
    np.testing.assert_allclose(known["logits"], logits(program, IDS), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_calibrated_on_is_refused(tmp_path: Path) -> None:
    program = _fused(tiny_folder("llama", tmp_path))
    with pytest.raises(TokcError, match="the model has no tokenizer"):
        calibration().token_ids(program)
    with pytest.raises(TokcError, match="cannot read the calibration text"):
        Calibration.of_file(tmp_path / "none.txt")
    ragged = Pipeline.parse("kv-layout{page=4 dtype=f32}").run(program)
    with pytest.raises(PassFailed, match="only a program of batch form is calibrated"):
        next(layers(ragged, [], _read, Calibration(ids=IDS)))


def test_what_to_calibrate_on_is_said_around_the_passes(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words", encoding="utf-8")
    assert calibration().name == "tokc's calibration text"
    with calibrating(Calibration.of_file(text)):
        assert (calibration().name, calibration().text) == ("text.txt", "words")
    assert calibration().name == "tokc's calibration text"
    assert Calibration(text="words").sha256 == Calibration.of_file(text).sha256 != Calibration().sha256
