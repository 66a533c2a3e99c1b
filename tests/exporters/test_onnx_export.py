"""A folder that was exported as ONNX runs in onnxruntime with its cache, and comes back as the same model."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.exporters.texts import TOKENIZERS, save_tokenizer
from tests.importers.running import logits
from tests.tiny_models import FAMILIES, tiny_folder
from tokc.compiler import Request, build
from tokc.errors import TokcError
from tokc.exporters.files import Export
from tokc.exporters.weights import Model
from tokc.importers import import_model
from tokc.importers.checkpoint import Grid, dequantized
from tokc.pipeline import Pipeline

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
UNLIKE = ("llama3", "gemma3", "phi4", "gpt2", "qwen2_moe")


def run(folder: Path, cut: int = 11) -> np.ndarray:
    """Return onnxruntime's logits, what is behind `cut` computed with the cache of what is before."""
    session = ort.InferenceSession(str(folder / "model.onnx"))
    pasts = {one.name: one.shape for one in session.get_inputs() if one.name.startswith("past_key_values")}
    cache = {name: np.zeros((2, shape[1], 0, shape[3]), np.float32) for name, shape in pasts.items()}
    names, found = [one.name for one in session.get_outputs()], []
    for start, stop in ((0, cut), (cut, IDS.shape[1])):
        places = np.tile(np.arange(start, stop), (2, 1))
        feeds = {"input_ids": IDS[:, start:stop], "position_ids": places, **cache}
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        found.append(outputs["logits"])
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in pasts}
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    "family", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_runs_in_onnxruntime(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / "model")
    Export(folder, "onnx", "f32").write(tmp_path / "out")
    assert np.abs(run(tmp_path / "out") - logits(import_model(folder), IDS)).max() < 1e-4


def test_the_folder_is_imported_as_the_same_model(tmp_path: Path) -> None:
    folder = tiny_folder("qwen3", tmp_path / "model", vocab_size=640)
    save_tokenizer(TOKENIZERS["gpt2"](), folder)
    Export(folder, "onnx", "f32").write(tmp_path / "out")
    before, after = import_model(folder), import_model(tmp_path / "out")
    assert np.abs(logits(after, IDS) - logits(before, IDS)).max() < 1e-4
    assert after.assets.tokenizer_json == before.assets.tokenizer_json
    assert after.assets.chat_template == before.assets.chat_template


def test_codes_are_kept(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    export = Export(folder, "onnx", "int4")
    export.write(tmp_path / "out")
    made = Pipeline.parse(export.pipeline).run(import_model(folder))
    weights = Model.of(made).weights
    assert sum(isinstance(weight, Grid) for weight in weights.values()) == 9
    want = logits(made, IDS)  # its activations are rounded, the export's are not
    assert np.abs(run(tmp_path / "out") - want).max() < 0.1 * np.abs(want).max()
    stored = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert stored < 0.5 * sum(4 * dequantized(weight).size for weight in weights.values())


@pytest.mark.slow
def test_an_artifact_goes_out_as_its_model_does(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1, head_dim=32)
    Export(folder, "onnx", "int4").write(tmp_path / "of-model")
    passes = "fuse-linear,fuse-attention,quantize-weights{act_group=32},kv-layout"
    artifact = build(Request(folder, passes=passes, check=False), tmp_path / "m.tokc").artifact
    Export(artifact, "onnx", "int4").write(tmp_path / "of-artifact")
    np.testing.assert_array_equal(run(tmp_path / "of-artifact"), run(tmp_path / "of-model"))


def test_a_type_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokcError, match="unknown dtype 'f16' of onnx; choose from int4, int8, f32"):
        Export(tmp_path, "onnx", "f16")
