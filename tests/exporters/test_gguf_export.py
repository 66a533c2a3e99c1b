"""A GGUF file that was exported is the same program again, and llama.cpp computes with it what we do."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.exporters.llamacpp import llamacpp_logits
from tests.exporters.texts import SPECIAL, TEMPLATE, TEXT, TOKENIZERS, save_tokenizer
from tests.importers.running import logits
from tests.tiny_models import tiny_folder
from tokc.errors import TokcError
from tokc.exporters.files import Export
from tokc.exporters.weights import Model
from tokc.importers import import_model
from tokc.importers.checkpoint import dequantized
from tokc.ir.program import Program
from tokc.pipeline import Pipeline

IDS = np.random.default_rng(0).integers(3, 96, (2, 24))
SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {},
    "llama_bias": {},
    "smollm2": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "granite": {},
    "olmo2": {},
    "gemma3": {"num_hidden_layers": 7, "layer_types": None, "query_pre_attn_scalar": 32},
    "phi3": {},
    "phi4": {},
    "stablelm": {},
    "stablelm_parallel": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "mixtral": {},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {},
    "olmoe": {"num_key_value_heads": 4},  # llama.cpp's has as many as it has heads
}
ALL_PASSES = (
    "fold-constants,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,quantize-weights{symmetric=false}"
)


def exported(folder: Path, out: Path, dtype: str = "f32", passes: str | None = None) -> Program:
    Export(folder, "gguf", dtype, passes).write(out)
    return import_model(out)


@pytest.mark.parametrize("family", SIZES)
def test_every_family_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / "model", **SIZES[family])
    program = import_model(folder)
    again = exported(folder, tmp_path / "m.gguf")
    before, after = Model.of(program).weights, Model.of(again).weights
    assert before.keys() == after.keys()
    for name, weight in before.items():
        np.testing.assert_array_equal(dequantized(after[name]), dequantized(weight))
    assert np.abs(logits(again, IDS) - logits(program, IDS)).max() < 1e-5


@pytest.mark.parametrize(
    ("dtype", "passes", "kinds"),
    [
        ("int4", None, {"Q4_0", "Q8_0"}),
        ("int8", None, {"Q8_0"}),
        ("f16", None, {"F16"}),
        ("int4", ALL_PASSES, {"Q4_1", "Q8_0"}),
    ],
)
def test_grids_are_written_as_they_are(
    dtype: str, passes: str | None, kinds: set[str], tmp_path: Path
) -> None:
    folder = tiny_folder("llama", tmp_path / "model")
    again = exported(folder, tmp_path / "m.gguf", dtype, passes)
    export = Export(folder, "gguf", dtype, passes)
    program = import_model(folder)
    made = Pipeline.parse(export.pipeline).run(program) if export.pipeline else program
    want, found = Model.of(made).weights, Model.of(again).weights
    for name, weight in want.items():
        values = dequantized(weight)
        plain = dtype == "f16" and values.ndim > 1
        np.testing.assert_array_equal(
            dequantized(found[name]), values.astype(np.float16) if plain else values
        )
    stored = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if len(t.shape) > 1}
    assert stored == kinds


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_and_the_chat_template_go_along(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", vocab_size=640, num_hidden_layers=1)
    save_tokenizer(TOKENIZERS[kind](), folder)
    assets = exported(folder, tmp_path / "m.gguf").assets
    ours, theirs = (
        Tokenizer.from_str(text or "") for text in (assets.tokenizer_json, tokenizer_text(folder))
    )
    for text in (TEXT, *TEXT.splitlines(), " a", "<tool>x", "a <|im_end|> b"):
        ids = theirs.encode(text).ids
        assert ours.encode(text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    assert assets.chat_template == TEMPLATE
    assert assets.special_tokens["bos_token"] == SPECIAL["bos_token"]


def tokenizer_text(folder: Path) -> str:
    return (folder / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_encodes_alike_and_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = tiny_folder("llama", tmp_path / "model", vocab_size=640)
    save_tokenizer(TOKENIZERS[kind](), folder)
    program = exported(folder, tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False)
    tokenizer = Tokenizer.from_str(program.assets.tokenizer_json or "")
    for text in ("The quick brown fox", "Größe, 12 naïve"):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text).ids
    ids = tokenizer.encode("The quick brown fox can't jump").ids
    model.eval(ids)
    want = logits(program, np.array([ids]))[0]
    assert np.abs(model.scores[: len(ids)] - want).max() < 0.02


@pytest.mark.slow
def test_llama_cpp_computes_every_family_as_we_do(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(3, 400, 24)
    paths, wanted = [], []
    for family, sizes in SIZES.items():
        heeded = {"sliding_window": None} if family == "phi3" else {}  # llama.cpp reads it and heeds it not
        folder = tiny_folder(family, tmp_path / family, vocab_size=640, **{**sizes, **heeded})
        save_tokenizer(TOKENIZERS["gpt2"](), folder)
        paths.append(tmp_path / f"{family}.gguf")
        Export(folder, "gguf", "f32").write(paths[-1])
        wanted.append(logits(import_model(folder, context=128), ids[None])[0])  # which llama.cpp has, too
    for path, want, found in zip(paths, wanted, llamacpp_logits(paths, ids), strict=True):
        assert np.abs(found - want).max() < 0.02 * np.abs(want).max(), path.stem


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", vocab_size=640, num_hidden_layers=1)
    save_tokenizer(TOKENIZERS["gpt2"](), folder)
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    described["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(described))
    with pytest.raises(TokcError, match="cuts text as none of those that GGUF names") as refused:
        exported(folder, tmp_path / "m.gguf")
    assert "--to hf" in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("mistral", {}, r"windows cannot be written as GGUF: \(6, 6, 6\) would be read as \(0, 0, 0\)"),
        ("gpt_neox_serial", {}, "activation cannot be written as GGUF: gelu_tanh would be read as gelu"),
        ("qwen2_moe", {}, "experts cannot be written as GGUF"),
        ("gpt_bigcode", {"multi_query": False}, "fused qkv cannot be written as GGUF"),
        (
            "gemma3",
            {"query_pre_attn_scalar": 48, "layer_types": None},
            "attention scale cannot be written as GGUF",
        ),
        ("gemma3", {}, "windows cannot be written as GGUF"),
    ],
)
def test_a_model_that_the_file_would_misstate_is_refused(
    family: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    scalar = {"query_pre_attn_scalar": 32} if family == "gemma3" else {}
    folder = tiny_folder(family, tmp_path / "model", **{**scalar, **changes})
    with pytest.raises(TokcError, match=problem):
        exported(folder, tmp_path / "m.gguf")


def test_weights_in_float_formats_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(TokcError, match=r"q_proj\.weight' is in a float format"):
        exported(folder, tmp_path / "m.gguf", "int4", "fuse-linear,cast-weights{format=e4m3}")


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokcError, match="unknown dtype 'bf16' of gguf; choose from int4, int8, f16, f32"):
        Export(tmp_path, "gguf", "bf16")
