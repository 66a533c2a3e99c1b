"""What an artifact holds goes out again: the codes, tokenizer and answers of the model it was built of."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.exporters.texts import TEMPLATE, TEXT, TOKENIZERS, save_tokenizer
from tests.importers.running import logits
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build
from tokc.errors import TokcError
from tokc.exporters.files import Export
from tokc.exporters.weights import Model
from tokc.importers import import_model
from tokc.importers.checkpoint import Grid, dequantized
from tokc.targets.table import named_target

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
SIZES = {"vocab_size": 640, "num_hidden_layers": 1, "head_dim": 32, "use_sliding_window": False}
# 3 bits, biases, stacked and plain weights: the forms that are packed
OPTIONS = "quantize-weights{bits=3 group=64 head_bits=32}"


@dataclass(frozen=True)
class Built:
    folder: Path
    artifact: Path
    pipeline: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build one small artifact with a weight of every kind."""
    path = tmp_path_factory.mktemp("built")
    folder = tiny_folder("qwen2", path / "model", **SIZES)
    save_tokenizer(TOKENIZERS["gpt2"](), folder)
    bound = named_target("cpu")
    specs = str(bound.pipeline(Request(folder).precision)).split(",")
    passes = ",".join(OPTIONS if one.startswith("quantize-weights") else one for one in specs)
    made = build(Request(folder, passes=passes, check=False), path / "m.tokc")
    return Built(folder, made.artifact, made.pipeline)


@pytest.mark.parametrize("to", ["gguf", "hf"])
def test_an_artifact_goes_out_as_its_model_does(to: str, built: Built, tmp_path: Path) -> None:
    names = {"gguf": ("a.gguf", "b.gguf"), "hf": ("a", "b")}[to]
    Export(built.folder, to, "int4", built.pipeline).write(tmp_path / names[0])
    Export(built.artifact, to, "int4").write(tmp_path / names[1])
    one, other = (import_model(tmp_path / name) for name in names)
    weights = Model.of(one).weights
    assert {isinstance(weight, Grid) for weight in weights.values()} == {True, False}
    for name, weight in weights.items():
        found = Model.of(other).weights[name]
        assert isinstance(found, Grid) is isinstance(weight, Grid)
        np.testing.assert_array_equal(dequantized(found), dequantized(weight))
    np.testing.assert_array_equal(logits(one, IDS), logits(other, IDS))
    texts = [program.assets.tokenizer_json or "" for program in (one, other)]
    assert Tokenizer.from_str(texts[0]).encode(TEXT).ids == Tokenizer.from_str(texts[1]).encode(TEXT).ids
    assert other.assets.chat_template == TEMPLATE


@pytest.mark.parametrize("options", [{"passes": "fuse-linear"}, {"lora": (Path("adapter"),)}])
def test_passes_and_adapters_are_for_models(options: dict[str, object], built: Built, tmp_path: Path) -> None:
    with pytest.raises(TokcError, match="--passes and --lora are for models"):
        Export(built.artifact, "hf", "int4", **options).write(tmp_path / "out")  # type: ignore[arg-type]


def test_an_artifact_for_another_machine_is_refused(built: Built, tmp_path: Path) -> None:
    other = shutil.copytree(built.artifact, tmp_path / "gpu.tokc")
    text = (built.artifact / "manifest.json").read_text()
    (other / "manifest.json").write_text(text.replace('"kind": "cpu"', '"kind": "cuda"'))
    with pytest.raises(
        TokcError, match=r"weights packed for 'cuda:.*' cannot be exported; those for cpu can"
    ):
        Export(other, "gguf", "int4").write(tmp_path / "m.gguf")


@pytest.mark.slow
def test_experts_go_out_one_by_one(tmp_path: Path) -> None:
    passes = "fuse-linear,fuse-attention,quantize-weights{act_group=32},kv-layout"
    sizes = {"num_hidden_layers": 1, "mlp_only_layers": [], "head_dim": 32}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    folder = tiny_folder("qwen2_moe", tmp_path / "model", **sizes)
    artifact = build(Request(folder, passes=passes, check=False), tmp_path / "m.tokc").artifact
    Export(folder, "gguf", "int4").write(tmp_path / "a.gguf")
    Export(artifact, "gguf", "int4").write(tmp_path / "b.gguf")
    one, other = (Model.of(import_model(tmp_path / name)).weights for name in ("a.gguf", "b.gguf"))
    assert sum(isinstance(weight, Grid) for name, weight in one.items() if ".experts." in name) == 2
    for name, weight in one.items():
        np.testing.assert_array_equal(dequantized(other[name]), dequantized(weight))
