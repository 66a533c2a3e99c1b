"""Tokenizers encode as transformers does, from a folder and from GGUF metadata."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.importers.gguf_writing import Kind, gguf_model, write_gguf
from tests.tiny_models import tiny_folder
from tokc.errors import ImportRefused
from tokc.importers import import_model
from tokc.importers.gguf_file import GgufFile
from tokc.importers.gguf_tokenizer import SPLITS, gguf_texts
from tokc.ir.program import Program

TEXT = """The quick brown fox can't jump; it's "lazy"...  Two  spaces,\ttabs\r\n\r\nand lines.
Größe, naïve café, ÆØÅ, łódź. Привет, мир! Ελληνικά. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया.
你好，世界。こんにちは世界。안녕하세요. ไทย 🙂👩‍👩‍👧‍👦🇨🇭 𝔘𝔫𝔦 ﬁ \u200b\u00a0x\u3000y
def f(x): return x**2 != 3   # ½ ² Ⅷ <|im_start|>user<|im_end|>I'LL WE'VE"""
DIGITS = "In 2024, 12345 of 67 890; ٣٤٥ 3.14159"
MESSAGES = [
    {"role": "user", "content": "Grüße! 1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "你确定吗？"},
]


@pytest.fixture(scope="session")
def smollm2_theirs(smollm2_path: Path) -> Any:
    """Return what transformers makes of the packaged model's metadata."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


def ours(program: Program) -> Tokenizer:
    assert program.assets.tokenizer_json is not None
    return Tokenizer.from_str(program.assets.tokenizer_json)


def test_smollm2_encodes_and_decodes_as_transformers_does(smollm2: Program, smollm2_theirs: Any) -> None:
    tokenizer, theirs = ours(smollm2), smollm2_theirs
    # transformers' reader of GGUF does not know that SmolLM2 takes digits one by one; the next test does.
    text = "".join(letter for letter in TEXT if not letter.isnumeric())
    for line in [text, *text.splitlines(), "", " ", "a"]:
        ids = tokenizer.encode(line).ids
        assert ids == theirs(line).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_smollm2_splits_digits_as_llama_cpp_does(smollm2: Program, smollm2_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(smollm2_path), vocab_only=True, verbose=False)
    for text in (DIGITS, TEXT):
        want = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ours(smollm2).encode(text, add_special_tokens=False).ids == want


def test_smollm2_renders_chats_as_transformers_does(smollm2: Program, smollm2_theirs: Any) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    assert smollm2.assets.chat_template is not None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(smollm2.assets.chat_template)
    text = template.render(messages=MESSAGES, add_generation_prompt=True, **smollm2.assets.special_tokens)
    assert text == smollm2_theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert smollm2.assets.special_tokens["eos_token"] == smollm2_theirs.eos_token


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Return a small byte-level tokenizer trained on the text itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT, DIGITS] * 4, trainer)
    return tokenizer


def write_vocabulary(path: Path, architecture: str, model: str, **fields: object) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "tekken"])
def test_byte_level_vocabularies_encode_as_transformers_does(
    pre: str, byte_level: Tokenizer, tmp_path: Path
) -> None:
    from transformers.integrations.gguf import convert_gguf_tokenizer

    vocabulary = sorted(byte_level.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    merges = [" ".join(pair) for pair in json.loads(byte_level.to_str())["model"]["merges"]]
    kinds = [3 if index < 3 else 1 for index in range(len(tokens))]
    path = tmp_path / "m.gguf"
    write_vocabulary(
        path, "llama", "gpt2", tokenizer_pre=pre, token_list=tokens, token_merges=merges, token_types=kinds
    )
    mine = Tokenizer.from_str(gguf_texts(GgufFile.open(path)).tokenizer_json or "")
    facts = {
        "tokenizer_type": "gpt2",
        "pre_tokenizer_type": pre,
        "tokens": tokens,
        "merges": merges,
        "token_type": kinds,
    }
    theirs, _ = convert_gguf_tokenizer("llama", facts)
    for text in (TEXT, DIGITS):
        assert mine.encode(text).ids == theirs.encode(text, add_special_tokens=False).ids
        assert mine.decode(mine.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("pre", [name for name in SPLITS if name != "default"])
def test_every_way_to_cut_text_is_llama_cpps(pre: str, byte_level: Tokenizer, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    vocabulary = sorted(byte_level.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary]
    merges = [" ".join(pair) for pair in json.loads(byte_level.to_str())["model"]["merges"]]
    path = tmp_path / "m.gguf"
    write_vocabulary(
        path, "llama", "gpt2", tokenizer_pre=pre, token_list=tokens, token_merges=merges, add_bos_token=False,
        token_types=[3 if index < 3 else 1 for index in range(len(tokens))], vocab_size=len(tokens),
        bos_token_id=1, eos_token_id=2, context_length=8, embedding_length=8, block_count=1,
        feed_forward_length=8, head_count=1, layer_norm_rms_eps=1e-5,
    )  # fmt: skip
    mine = Tokenizer.from_str(gguf_texts(GgufFile.open(path)).tokenizer_json or "")
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    # Where case tells letters apart, llama.cpp cuts at combining marks; the models' own patterns do not.
    words = TEXT.replace("नमस्ते दुनिया.", "") if pre in {"tekken", "gpt-4o"} else TEXT
    for text in (*words.splitlines(), words, DIGITS, "camelCaseWords HTTPServer I'LL it's a/b//c\n/d"):
        assert mine.encode(text).ids == theirs.tokenize(text.encode(), add_bos=False, special=True)


PIECES = [
    *" .,!?'abcdefghijklmnopqrstuvwxyzTHIéöПривет你好",
    "th",
    "the",
    "in",
    "ing",
    "qu",
    "ck",
    "er",
    "an",
    "and",
]
WORDS = ["\u2581the", "\u2581a", "\u2581an", "\u2581in", "\u2581and", "\u2581\u2581", "Пр", "При", "你好"]


def pieces(architecture: str) -> tuple[list[str], list[float], list[int]]:
    special = ["<unk>", "<s>", "</s>"] if architecture == "llama" else ["<pad>", "<eos>", "<bos>", "<unk>"]
    # Files spell Gemma's runs of spaces as spaces.
    words = [word if architecture == "llama" else word.replace("\u2581\u2581", "  ") for word in WORDS]
    single = ["\u2581", *dict.fromkeys(piece for piece in PIECES if piece != " ")]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words, *single]
    kinds = [3] * len(special) + [6] * 256 + [1] * (len(words) + len(single))
    return tokens, [-float(index) for index in range(len(tokens))], kinds


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_sentencepiece_vocabularies_encode_as_transformers_does(architecture: str, tmp_path: Path) -> None:
    tokens, scores, kinds = pieces(architecture)
    path = tmp_path / "m.gguf"
    bos = tokens.index("<s>" if architecture == "llama" else "<bos>")
    write_vocabulary(
        path,
        architecture,
        "llama",
        token_list=tokens,
        token_scores=scores,
        token_types=kinds,
        bos_token_id=bos,
        add_bos_token=True,
        unk_token_id=tokens.index("<unk>"),
    )
    from transformers.integrations.gguf import convert_gguf_tokenizer

    mine = Tokenizer.from_str(gguf_texts(GgufFile.open(path)).tokenizer_json or "")
    facts = {"tokenizer_type": "llama", "tokens": tokens, "scores": scores, "token_type": kinds}
    theirs, _ = convert_gguf_tokenizer(architecture, facts)
    # transformers' converter takes a first space for the one that begins every text; sentencepiece does not.
    for text in (TEXT, DIGITS, "the  and", "the thing", *([" the  and"] if architecture == "gemma3" else [])):
        want = theirs.encode(text, add_special_tokens=False).ids
        assert mine.encode(text, add_special_tokens=False).ids == want
        assert mine.encode(text).ids == [bos, *want]
        assert mine.decode(want) == theirs.decode(want)


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_sentencepiece_model_encodes_as_sentencepiece_and_llama_cpp_do(
    prefixed: bool, tmp_path: Path
) -> None:
    """Both libraries are large, and checked where they are installed."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text(f"{TEXT}\n{DIGITS}\n" * 8)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), model_type="bpe", vocab_size=520,
        byte_fallback=True, add_dummy_prefix=prefixed, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", character_coverage=0.98, hard_vocab_limit=False,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    path = tmp_path / "m.gguf"
    write_vocabulary(
        path, "llama", "llama", token_list=[theirs.id_to_piece(i) for i in ids], token_types=kinds,
        token_scores=[theirs.get_score(i) for i in ids], add_bos_token=False, add_space_prefix=prefixed,
        bos_token_id=1, eos_token_id=2, unk_token_id=0, context_length=8, embedding_length=8, block_count=1,
        feed_forward_length=8, head_count=1, layer_norm_rms_eps=1e-5, vocab_size=len(ids),
    )  # fmt: skip
    mine = Tokenizer.from_str(gguf_texts(GgufFile.open(path)).tokenizer_json or "")
    texts = [*TEXT.splitlines(), DIGITS, " the  and", "the thing", ""]
    for text in texts:
        assert mine.encode(text).ids == theirs.encode(text)
        assert mine.decode(mine.encode(text).ids) == text
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in texts[:-1]:
        assert mine.encode(text).ids == model.tokenize(text.encode(), add_bos=False, special=True)


def test_a_folders_tokenizer_is_kept_without_its_truncation(byte_level: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tiny_folder("llama", tmp_path)
    limited = Tokenizer.from_str(byte_level.to_str())
    limited.enable_truncation(5)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    saved = PreTrainedTokenizerFast(tokenizer_object=limited, **special)
    saved.chat_template = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
    saved.save_pretrained(tmp_path)
    program = import_model(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(ours(program).encode(TEXT).ids) > 5
    assert ours(program).encode(TEXT).ids == theirs(TEXT, truncation=False).input_ids
    assert program.assets.chat_template == saved.chat_template
    assert program.assets.special_tokens == special


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    write_gguf(gguf_model("llama"), "llama", tmp_path / "m.gguf", Kind.F32)
    assert import_model(tmp_path / "m.gguf").assets.tokenizer_json is None


@pytest.mark.parametrize(
    ("model", "pre", "problem"), [("bert", "x", "tokenizer 'bert'"), ("gpt2", "x", "'x'")]
)
def test_an_unknown_tokenizer_is_refused(model: str, pre: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_vocabulary(path, "llama", model, tokenizer_pre=pre, token_list=["a"], token_merges=["a b"])
    with pytest.raises(ImportRefused, match=problem) as refused:
        gguf_texts(GgufFile.open(path))
    assert refused.value.where == str(path)
    assert all(name in refused.value.problem for name in (SPLITS if model == "gpt2" else ("gpt2", "llama")))
