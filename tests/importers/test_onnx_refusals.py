"""A graph that is no decoder, or another than its configuration says, gets one clear error."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.importers.exports import FIXTURES, changed_graph, graph_folder
from tests.importers.running import logits
from tokc.errors import ImportRefused
from tokc.importers import import_model
from tokc.importers.onnx import load_onnx
from tokc.importers.raising.facts import Rotation, differences

Change = Callable[[ir.Node], None]
STRIDE = 11  # all of them take long; coprime to the nodes of a layer, so that every kind is met
IDS = np.random.default_rng(1).integers(3, 64, (2, 9))


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def constant(model: ir.Model, array: np.ndarray) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(array)})
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]


def refused(model: ir.Model, path: Path) -> str:
    ir.save(model, path)
    with pytest.raises(ImportRefused) as caught:
        import_model(path)
    assert caught.value.hint
    return str(caught.value)


def test_a_changed_softmax_names_itself_and_how_many_layers_are_left(tmp_path: Path) -> None:
    model, path = changed_graph("optimum/llama", tmp_path)
    softmax = nodes(model, "Softmax")[1]
    softmax.attributes["axis"] = ir.AttrInt64("axis", 1)
    text = refused(model, path)
    assert "recognized 1 of 2 attention layers; the nearest subgraph that did not match" in text
    assert "expected a softmax over the last axis, found Softmax(Add(MatMul(" in text
    assert f"node '{softmax.name}'" in text


def test_a_rotation_with_another_sign_names_the_layer_s_sum(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/llama_opset18", tmp_path)
    neg = nodes(model, "Neg")[0]
    neg.outputs[0].replace_all_uses_with(neg.inputs[0])
    text = refused(model, path)
    assert "recognized 1 of 2 attention layers" in text
    assert "queries split into 4 heads of 8 and rotated by their positions" in text
    assert "found Mul(Add(Mul(" in text


def test_a_missing_activation_names_the_feed_forward_layer(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/qwen3", tmp_path)
    sigmoid = nodes(model, "Sigmoid")[1]
    sigmoid.outputs[0].replace_all_uses_with(ir.node("Tanh", [sigmoid.inputs[0]]).outputs[0])
    tanh = sigmoid.inputs[0].uses()[-1].node
    model.graph.insert_after(sigmoid, tanh)
    text = refused(model, path)
    assert "recognized 2 of 2 attention layers, but not what lies around them" in text
    assert "act(gate) * up with one of the activations silu" in text


def test_an_op_of_a_runtime_is_named(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/llama", tmp_path)
    product = nodes(model, "MatMul")[0]
    product.op_type, product.domain = "MatMulNBits", "com.microsoft"
    model.opset_imports["com.microsoft"] = 1
    assert "'com.microsoft.MatMulNBits'" in refused(model, path)


CONTRADICTIONS: list[tuple[dict[str, object], str]] = [
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps: the graph has 1e-06, the configuration 1e-05"),
    ({"rope_theta": 20000.0}, "the rotary angles"),
    (
        {"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1},
        "num_attention_heads: the graph has 4, the",
    ),
    ({"num_hidden_layers": 3}, "the graph has 2 attention layers, the configuration states 3"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act: the graph has 'silu', the configuration 'gelu_tanh'"),
    ({"tie_word_embeddings": True}, "the graph's head has other weights than its embedding"),
    ({"intermediate_size": 40}, "has shape [48, 32], the configuration asks for [40, 32]"),
    ({"attention_bias": True}, "'model.layers.0.self_attn.q_proj.bias' is missing"),
    ({"architectures": ["Qwen3ForCausalLM"]}, "'model.layers.0.self_attn.q_norm.weight' is missing"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 6}, "which tokens a query sees"),
]


@pytest.mark.parametrize(("changes", "expected"), CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_graph_is_refused(
    changes: dict[str, object], expected: str, tmp_path: Path
) -> None:
    folder = graph_folder("optimum/llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ImportRefused) as caught:
        import_model(folder)
    assert expected in str(caught.value)


def test_the_parts_that_a_folder_lacks_are_named(tmp_path: Path) -> None:
    folder = graph_folder("dynamo/llama", tmp_path / "model")
    (folder / "second.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(ImportRefused, match=r"several graphs: model\.onnx, second\.onnx"):
        import_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ImportRefused, match=r"there is no 'config\.json' beside 'model\.onnx'"):
        import_model(folder / "model.onnx")


def test_a_damaged_file_and_missing_weights_are_told_apart(tmp_path: Path) -> None:
    folder = graph_folder("dynamo/llama", tmp_path)
    graph, file = onnx.load(folder / "model.onnx"), folder / "model.onnx"
    onnx.save(graph, file, save_as_external_data=True, location="weights.bin", size_threshold=64)
    weights = folder / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(ImportRefused, match=r"'weights\.bin' is truncated: weight '.*' ends at byte"):
        import_model(folder)
    weights.unlink()
    with pytest.raises(ImportRefused, match=r"'weights\.bin', which has the weights, is missing"):
        import_model(folder)
    weights.write_bytes(whole)
    (folder / "inner").mkdir()
    file.rename(folder / "inner" / "model.onnx")
    model = onnx.load(folder / "inner" / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../weights.bin" if entry.key == "location" else entry.value
    (folder / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ImportRefused, match="lies outside of the model's folder"):
        import_model(folder / "inner" / "model.onnx")
    file.write_bytes(b"no graph")
    with pytest.raises(ImportRefused, match=r"'model\.onnx' is damaged"):
        import_model(file)


def test_a_graph_for_one_number_of_tokens_is_refused(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/llama", tmp_path)
    model.graph.inputs[0].shape = ir.Shape(["batch", 16])
    assert "the graph was made for exactly 16 tokens" in refused(model, path)


def test_an_input_that_a_decoder_lacks_is_named(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/llama", tmp_path)
    model.graph.inputs.append(ir.val("inputs_embeds", ir.DataType.FLOAT, ["batch", "seq", 32]))
    assert "input 'inputs_embeds' has no place in a decoder" in refused(model, path)


def test_a_cache_whose_outputs_are_not_its_inputs_grown_is_refused(tmp_path: Path) -> None:
    model, path = changed_graph("dynamo/llama", tmp_path)
    outputs = model.graph.outputs
    outputs[1], outputs[3] = outputs[3], outputs[1]
    assert "expected 'past_key_values.0.key' grown by the new tokens" in refused(model, path)


def computed(path: Path) -> np.ndarray:
    """Return what onnxruntime computes of a file, its cache empty."""
    session = ort.InferenceSession(path)
    feeds: dict[str, np.ndarray] = {
        "input_ids": IDS,
        "attention_mask": np.ones_like(IDS),
        "position_ids": np.tile(np.arange(IDS.shape[1]), (len(IDS), 1)),
    }
    for given in session.get_inputs():
        if given.name.startswith("past"):
            feeds[given.name] = np.zeros((len(IDS), given.shape[1], 0, given.shape[3]), np.float32)
    return session.run(["logits"], feeds)[0]


def changes_of(model: ir.Model) -> list[tuple[ir.Node, Change]]:
    """Return one change of each node of an op that computes: its operands swapped, or its op another."""
    others = {
        "Add": "Sub", "Sub": "Add", "Mul": "Add", "Div": "Mul", "Sqrt": "Abs", "Sigmoid": "Tanh",
        "Neg": "Identity", "Softmax": "LogSoftmax", "LessOrEqual": "Less", "Cos": "Sin", "Sin": "Cos",
        "And": "Or", "Pow": "Mul", "Reciprocal": "Sqrt", "ReduceMean": "ReduceSum", "Max": "Min",
        "IsNaN": "Cast", "Where": "Where",
    }  # fmt: skip

    def change(node: ir.Node) -> None:
        if node.op_type == "Where":
            node.replace_input_with(1, node.inputs[2])
        node.op_type = others[node.op_type]
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.BOOL)

    return [(node, change) for node in model.graph if node.op_type in others]


def test_no_changed_node_goes_unnoticed(tmp_path: Path) -> None:
    """Whatever node is changed: the graph is refused, or what is imported still computes what it computes."""
    model, path = changed_graph("dynamo/llama_opset18", tmp_path)
    count, refusals = len(changes_of(model)), 0
    for index in range(0, count, STRIDE):
        model = ir.load(FIXTURES / "dynamo/llama_opset18" / "model.onnx")
        node, change = changes_of(model)[index]
        change(node)
        ir.save(model, path)
        try:
            program = load_onnx(path)
        except ImportRefused:
            refusals += 1
            continue
        assert np.abs(logits(program, IDS) - computed(path)).max() < 1e-4, f"{node.op_type} {node.name}"
    assert refusals > 0


def test_angles_may_differ_by_the_rounding_of_their_frequencies_and_no_more() -> None:
    places = np.arange(8188, 8192)[:, None]
    frequencies = np.array([0.7498942, 0.1]) * np.ones((4, 1))

    def rotation(relative: float) -> Rotation:
        angles = places * frequencies * (1 + relative)
        return Rotation(np.arange(2), np.cos(angles), np.sin(angles))

    assert not list(differences(rotation(0), rotation(2.0**-23), 8191))
    assert list(differences(rotation(0), rotation(1e-5), 8191))
    assert list(differences(rotation(0), rotation(2.0**-23), 7))
