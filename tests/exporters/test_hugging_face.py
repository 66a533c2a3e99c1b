"""A folder that was exported is read by transformers, and computes there what the program computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporters.texts import SPECIAL, TEXT, TOKENIZERS, save_tokenizer
from tests.importers.gguf_writing import Kind, gguf_model, write_gguf
from tests.importers.running import logits
from tests.tiny_models import FAMILIES, tiny_folder
from tokc.errors import TokcError
from tokc.exporters.files import Export
from tokc.exporters.weights import Model
from tokc.importers import import_model
from tokc.importers.checkpoint import Grid, dequantized
from tokc.pipeline import Pipeline

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
MESSAGES = [{"role": "user", "content": "Grüße!"}]


def theirs(folder: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


# One of each way in which files name, turn, stack and order weights; the others run with the slow tests.
UNLIKE = ("llama3", "gemma3", "phi4", "gpt2", "gpt_neox", "stablelm", "mixtral", "qwen2_moe")


@pytest.mark.parametrize(
    "family", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_is_read_by_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / "model")
    Export(folder, "hf", "f32").write(tmp_path / "out")
    assert np.abs(theirs(tmp_path / "out") - theirs(folder)).max() < 1e-5


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("f16", 11)])
def test_narrow_types_are_rounded_once(dtype: str, bits: int, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    Export(folder, "hf", dtype).write(tmp_path / "out")
    before, after = (Model.of(import_model(path)).weights for path in (folder, tmp_path / "out"))
    for name, weight in before.items():
        values = dequantized(weight)
        assert (np.abs(dequantized(after[name]) - values) <= np.abs(values) * 2.0**-bits + 1e-7).all()


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen3", "gemma3"])
def test_a_gguf_file_becomes_a_folder(family: str, tmp_path: Path) -> None:
    scaling = {"rope_parameters": LLAMA31} if family == "llama3" else {}
    model = gguf_model(family, **scaling)
    write_gguf(model, family, tmp_path / "m.gguf", Kind.Q4_0)
    Export(tmp_path / "m.gguf", "hf", "f32").write(tmp_path / "out")
    assert np.abs(theirs(tmp_path / "out") - logits(import_model(tmp_path / "m.gguf"), IDS)).max() < 1e-4


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_divisors_that_are_no_known_scaling_are_refused(tmp_path: Path) -> None:
    write_gguf(gguf_model("llama3"), "llama3", tmp_path / "m.gguf", Kind.F32)
    with pytest.raises(TokcError, match="divisors of rotary frequencies are no scaling"):
        Export(tmp_path / "m.gguf", "hf", "f32").write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_codes_are_kept_in_pack_quantized(dtype: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    export = Export(folder, "hf", dtype)
    export.write(tmp_path / "out")
    made = Model.of(Pipeline.parse(export.pipeline).run(import_model(folder))).weights
    again = Model.of(import_model(tmp_path / "out")).weights
    projections = [name for name in made if name.endswith("_proj.weight")]
    assert len(projections) == 21
    for name in projections:
        assert isinstance(again[name], Grid)
        np.testing.assert_array_equal(dequantized(again[name]), dequantized(made[name]))


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_transformers_computes_with_pack_quantized(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    Export(tiny_folder("llama", tmp_path / "model"), "hf", dtype).write(tmp_path / "out")
    assert np.abs(theirs(tmp_path / "out") - logits(import_model(tmp_path / "out"), IDS)).max() < 1e-4


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_and_the_chat_template_go_along(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", vocab_size=640, num_hidden_layers=1)
    save_tokenizer(TOKENIZERS[kind](), folder)
    Export(folder, "hf", "f32").write(tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    assert after(TEXT).input_ids == before(TEXT).input_ids
    assert after.apply_chat_template(MESSAGES, tokenize=False) == "<|im_start|>Grüße!<|im_end|>"
    assert after.bos_token == SPECIAL["bos_token"]
    plain = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert plain.encode(TEXT).ids == before(TEXT).input_ids


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note").write_text("mine")
    with pytest.raises(TokcError, match="exists"):
        Export(folder, "hf", "f32").write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_the_command_writes_a_folder_and_names_its_files(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tokc.cli.app import app

    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    options: list[Any] = ["--to", "hf", "--dtype", "f16", "--json", "--out", tmp_path / "out"]
    ran = CliRunner().invoke(app, ["export", str(folder), *map(str, options)])
    assert ran.exit_code == 0, ran.output
    written = json.loads(ran.stdout)
    assert str(tmp_path / "out" / "model.safetensors") in written
    assert all(Path(path).is_file() for path in written)
