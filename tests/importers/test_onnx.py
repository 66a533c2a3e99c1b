"""Graphs of real exporters become the very programs of the folders that they were made of."""

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.end_to_end.test_invariance import DECODED, Way, logits_of
from tests.importers.exports import EXPORTS, FIXTURES, changed_graph, graph_folder, weights_folder
from tests.importers.running import logits
from tokc.compiler import Request, build, precision
from tokc.importers import import_model, load_folder
from tokc.importers.mapping import release_pages
from tokc.importers.onnx_file import interface_of, read_onnx, sampled
from tokc.importers.raising.facts import text
from tokc.importers.raising.sample import Size
from tokc.importers.raising.stack import decoder_of
from tokc.ir.program import Program
from tokc.ir.text import render
from tokc.runtime.artifact import Artifact
from tokc.runtime.executors.cpu import CpuExecutor

IDS = np.random.default_rng(0).integers(3, 64, (2, 24))
GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
STOP = 2


def weights_of(program: Program) -> dict[str, bytes]:
    values = program.graph.initializers.items()
    return {name: value.const_value.numpy().tobytes() for name, value in values if value.const_value}


@pytest.mark.parametrize("export", EXPORTS)
def test_an_export_is_the_program_of_its_folder_and_equals_transformers(export: str, tmp_path: Path) -> None:
    program = import_model(FIXTURES / export)
    folder = load_folder(weights_folder(export, tmp_path))
    assert program.config == folder.config
    assert [str(node) for node in program.graph] == [str(node) for node in folder.graph]
    assert weights_of(program) == weights_of(folder)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        want = model(torch.tensor(IDS)).logits.numpy()
    assert np.abs(logits(program, IDS) - want).max() < TOLERANCE
    assert np.abs(logits(program, IDS, cuts=(11, 12, 13, 20)) - want).max() < TOLERANCE


@pytest.mark.parametrize("export", ["optimum/llama", "dynamo/llama", "dynamo/qwen3_opset18"])
def test_a_layer_is_raised_to_what_is_on_record(export: str) -> None:
    assert f"{raised_layer(export)}\n{program_layer(export)}\n" == golden(export).read_text()


def golden(export: str) -> Path:
    return GOLDEN / f"{export.replace('/', '_')}.txt"


def raised_layer(export: str) -> str:
    """Return what layer 0 of a graph was found to be, its weights by their names in the file."""
    model = read_onnx(FIXTURES / export / "model.onnx")
    interface = interface_of(model.graph, export)
    heads = next(tuple(value.shape or ()) for value in interface.cache)
    sample = sampled(model, interface, Size(batch=2, past=5, seq=3), (int(heads[1]), int(heads[3])))
    return text(decoder_of(sample, interface.logits, interface.ids).decoder.layers[0])


def program_layer(export: str) -> str:
    """Return the program's text from the first norm of layer 0 to that of layer 1."""
    lines = render(import_model(FIXTURES / export)).splitlines()
    ends = [index for index, line in enumerate(lines) if "input_layernorm" in line and "= RMS" in line]
    return "\n".join(line.strip() for line in lines[ends[0] : ends[1]])


@pytest.mark.parametrize("export", ["optimum/qwen3"])
def test_an_artifact_of_an_export_is_that_of_the_folder_and_answers_as_transformers(
    export: str, tmp_path: Path
) -> None:
    folder = weights_folder(export, tmp_path / "hf")
    request = Request(FIXTURES / export, precision=precision("f32", None))
    made = build(request, tmp_path / "graph.tokc").artifact
    want = build(replace(request, model=folder), tmp_path / "folder.tokc").artifact
    for name in ("model.safetensors", "plan.json", "program.onnx"):
        assert (made / name).read_bytes() == (want / name).read_bytes()
    executor = CpuExecutor.open(Artifact.open(made), threads=1, kv_bytes=1 << 20)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = IDS[0, :9].astype(np.int32)
    answer = model.generate(torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=12, do_sample=False)
    assert greedy(executor, prompt, 12) == answer[0, 9:].tolist()
    executor.close()


def greedy(executor: CpuExecutor, prompt: np.ndarray, steps: int) -> list[int]:
    """Return the tokens that an artifact answers, at most until it stops."""
    found: list[int] = []
    while len(found) < steps and (not found or found[-1] != STOP):
        tokens = np.concatenate([prompt, np.array(found, np.int32)])
        found.append(
            int(logits_of(executor, np.concatenate([tokens, tokens[:DECODED]]), Way(threads=1))[0].argmax())
        )
    return found


def test_weights_stay_in_the_external_file(tmp_path: Path) -> None:
    folder = graph_folder("dynamo/llama", tmp_path)
    graph = onnx.load(folder / "model.onnx")
    onnx.save(
        graph,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    assert (folder / "model.onnx").stat().st_size < 60_000
    program = import_model(folder)
    tensor = program.graph.initializers["model.embed_tokens.weight"].const_value
    assert tensor is not None
    values = tensor.numpy()
    before = values.copy()
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    release_pages()
    assert (values == before).all()
    assert weights_of(program) == weights_of(import_model(FIXTURES / "dynamo/llama"))


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    model, path = changed_graph("optimum/llama", tmp_path)
    for value in list(model.graph.initializers.values()):
        assert value.const_value is not None
        if value.dtype == ir.DataType.FLOAT:
            half = ir.tensor(value.const_value.numpy().astype(np.float16))
            value.name = f"{value.name}.half"
            value.const_value, value.type = half, ir.TensorType(ir.DataType.FLOAT16)
            value.dtype = ir.DataType.FLOAT16
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            model.graph.insert_before(model.graph[0], cast)
            for use in list(value.uses()):
                if use.node is not cast:
                    use.node.replace_input_with(use.idx, cast.outputs[0])
    ir.save(model, path)
    found, want = weights_of(import_model(path)), weights_of(import_model(FIXTURES / "optimum/llama"))
    for name, data in want.items():
        if name.startswith("model."):
            half = np.frombuffer(data, np.float32).astype(np.float16).astype(np.float32)
            assert found[name] == half.tobytes(), name


def test_context_caps_the_positions_and_a_folder_of_the_hub_is_read(tmp_path: Path) -> None:
    graph_folder("dynamo/qwen3", tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "model.onnx").rename(tmp_path / "onnx" / "model.onnx")
    program = import_model(tmp_path, context=40)
    assert program.config.context == 40
    assert set(program.assets.provenance) == {"config.json", "model.onnx"}
