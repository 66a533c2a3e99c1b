"""A build whose weights were fitted to a text says so, and finds its finished layers again."""

import hashlib
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.testing import CliRunner

from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.compiler import Request, build, estimate
from tokc.quality.text import calibration_text
from tokc.runtime.manifest import Manifest

PASSES = (
    "fold-constants,eliminate-dead-code,fuse-linear,fuse-attention,fuse-qkv,fuse-gate-up,"
    "quantize-weights{method=gptq bits=4 group=32},fuse-add-rms-norm,kv-layout{page=16 dtype=f32}"
)


WORDS = "the quick brown fox jumps over the lazy dog. " * 200
QKV = "model.layers.0.self_attn.qkv_proj.weight.q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model that reads bytes."""
    folder = tiny_folder(
        "llama", tmp_path_factory.mktemp("model"), head_dim=32, vocab_size=256, num_hidden_layers=1
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_text_is_named_in_ledger_and_manifest(model: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text(WORDS, encoding="utf-8")
    unfinished = tmp_path / "unfinished" / "key"
    request = Request(model, passes=PASSES, calibration_text=words, check=False, unfinished=unfinished)
    made = build(request, tmp_path / "a.tokc")
    manifest = Manifest.parse((made.artifact / "manifest.json").read_bytes())
    assert manifest.calibration["text"] == "words.txt"
    assert manifest.calibration["characters"] == str(len(WORDS))
    assert manifest.calibration["tokens"] == "32 windows of 128"
    assert manifest.calibration["sha256"] == hashlib.sha256(WORDS.encode()).hexdigest()
    assert "method=gptq" in manifest.pipeline
    entry = next(one for one in made.ledger if "gptq" in one.pass_spec)
    assert any(manifest.calibration["sha256"] in note and "words.txt" in note for note in entry.notes)
    assert not unfinished.exists()


def test_another_text_makes_other_weights(model: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text(WORDS, encoding="utf-8")
    made = [
        build(
            Request(model, passes=PASSES, calibration_text=text, check=False, stop_after="quantize-weights"),
            tmp_path / "a.tokc",
        ).program
        for text in (None, words, words)
    ]
    assert made[0].assets.calibration["characters"] == str(len(calibration_text()))
    tensors = [program.graph.initializers[QKV].const_value for program in made]
    weights = [tensor.tobytes() for tensor in tensors if tensor is not None]
    assert weights[0] != weights[1] == weights[2]


def test_an_estimate_calibrates_nothing(model: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.txt"
    found = estimate(Request(model, passes=PASSES, calibration_text=none))
    assert 0 < found.weight_bytes < found.model_bytes / 3


def test_the_command_line_takes_a_text_and_goes_on_where_it_was_interrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKC_BUILD_CACHE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    command = ["build", str(model), "-o", str(tmp_path / "a.tokc"), "--passes", PASSES, "--no-check"]
    answer = CliRunner().invoke(app, [*command, "--calibration-text", str(short)])
    assert answer.exit_code == 1
    assert "fewer than one window" in str(answer.output) + str(answer.exception)
    answer = CliRunner().invoke(app, [*command, "--calibration-text", str(tmp_path / "none.txt")])
    assert answer.exit_code == 1
    assert "cannot read the calibration text" in str(answer.output) + str(answer.exception)

    monkeypatch.setattr("tokc.artifact.build_cache.key_of", lambda *_, **__: "key")
    command[5] = PASSES[: PASSES.index(",kv-layout")]  # which no target lowers
    folder = tmp_path / "cache" / "tokc" / "unfinished" / "key"
    seen = []
    for _ in range(2):
        assert CliRunner().invoke(app, command).exit_code == 1
        seen.append({path: path.stat().st_mtime_ns for path in folder.rglob("*.q.npy")})
    assert len(seen[0]) == 4
    assert seen[0] == seen[1]
