"""The vocabulary's table encodes and decodes as the whole tokenizer does, and is left out if it could not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer

from tokc.artifact.vocabulary import vocabulary_tensors
from tokc.artifact.writer import write_safetensors
from tokc.errors import ArtifactRefused
from tokc.runtime import narrow_tokenizer
from tokc.runtime.tokenizer import Tokenizer
from tokc.runtime.vocabulary import Vocabulary

TEXT = (Path(__file__).read_text() + "naïve façade — 日本語のテキスト 12 345 6789 🦊🦊  \n\n\tx") * 2
ADDED = [
    AddedToken("<|end|>", special=True),
    AddedToken("def", normalized=False),
    AddedToken("<s>", special=True),
]
UNKNOWN = "<unk>"
PIECES = [
    "<|end|>",
    "<s>",
    "def",
    " the",
    "▁",
    "naïve",
    "\n\n",
    "日本",
    "🦊",
    "\x00",
    " ",
    "e\u0301",
    "12345",
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(max_size=6), st.sampled_from(TEXT.split())), max_size=8
)


def train(fast: FastTokenizer, **options: object) -> FastTokenizer:
    """Train on this file's own text, then add tokens, two of them beyond the model's."""
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<s>"], **options)
    fast.train_from_iterator([TEXT], trainer)
    fast.add_special_tokens([token for token in ADDED if token.special])
    fast.add_tokens([token for token in ADDED if not token.special])
    return fast


def byte_level() -> FastTokenizer:
    """Return a tokenizer like GPT-2's, with Llama 3's whole words and a begin token."""
    fast = FastTokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    fast.normalizer = normalizers.NFC()
    fast.decoder = decoders.ByteLevel()
    fast = train(fast, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", fast.token_to_id("<s>"))]
    )
    return fast


def byte_fallback() -> FastTokenizer:
    """Return a tokenizer like Llama 2's: a whole text is one word, unknown characters become bytes."""
    fast = FastTokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    value = json.loads(train(fast, limit_alphabet=60, max_token_length=9).to_str())
    vocab = value["model"]["vocab"]
    for text in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(200))]:  # some bytes are unknown
        vocab[text] = max(vocab.values()) + 1
    return FastTokenizer.from_str(json.dumps(_renumbered(value)))


def plain() -> FastTokenizer:
    """Return a tokenizer without any part but the model, which drops unknown characters."""
    fast = FastTokenizer(models.BPE())
    fast.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=400, show_progress=False, max_token_length=6)
    )
    return fast


def _renumbered(value: dict) -> dict:
    """Give added tokens beyond the model's the ids after those that it got."""
    taken = value["model"]["vocab"]
    place = len(taken)
    ordered = sorted(taken, key=taken.__getitem__)
    value["model"]["vocab"] = {text: index for index, text in enumerate(ordered)}
    for token in value["added_tokens"]:
        known = value["model"]["vocab"].get(token["content"])
        token["id"] = place if known is None else known
        place += known is None
    return value


KINDS: dict[str, Callable[[], FastTokenizer]] = {
    "bytes": byte_level,
    "fallback": byte_fallback,
    "plain": plain,
}
MADE: dict[str, tuple[Tokenizer, Vocabulary, str]] = {}


def made(kind: str) -> tuple[Tokenizer, Vocabulary, str]:
    """Return the whole tokenizer of a kind, its table and its text."""
    if kind not in MADE:
        text = KINDS[kind]().to_str()
        tensors = vocabulary_tensors(text)
        assert tensors is not None, "the table was refused"
        MADE[kind] = Tokenizer(text), Vocabulary({tensor.name: tensor.load() for tensor in tensors}), text
    return MADE[kind]


def text_of(kind: str) -> Callable[[], str]:
    """Return a function that returns a tokenizer's text."""
    return lambda: made(kind)[2]


def unwanted() -> str:
    raise AssertionError("the whole tokenizer was asked for")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [True, False])
@given(st.lists(TEXTS, min_size=1, max_size=4))
@settings(deadline=None)
def test_the_table_encodes_and_decodes_as_the_whole_tokenizer(
    kind: str, special: bool, several: list[list[str]]
) -> None:
    whole, vocabulary, _ = made(kind)
    narrow = Tokenizer(text_of(kind) if kind == "plain" else unwanted, vocabulary=vocabulary)
    for pieces in several:
        text = "".join(pieces)
        ids = whole.encode(text, add_special_tokens=special)
        assert narrow.encode(text, add_special_tokens=special) == ids
        assert narrow.decode(ids, skip_special_tokens=special) == whole.decode(
            ids, skip_special_tokens=special
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_its_text_and_its_bytes(kind: str) -> None:
    whole, vocabulary, _ = made(kind)
    narrow = Tokenizer(unwanted, vocabulary=vocabulary)
    assert narrow.vocab_size == whole.vocab_size
    for token in range(whole.vocab_size + 3):
        assert narrow.token_bytes(token) == whole.token_bytes(token)
        assert narrow.decode([token]) == whole.decode([token])


def test_long_texts_and_many_words_are_left_to_the_whole_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, vocabulary, _ = made("bytes")
    asked: list[int] = []

    def text() -> str:
        asked.append(1)
        return made("bytes")[2]

    long = "a longer text " * 1000
    assert Tokenizer(text, vocabulary=vocabulary).encode(long) == whole.encode(long)
    assert len(asked) == 1
    monkeypatch.setattr(narrow_tokenizer, "MOST_TOKENS", 30)
    several = Tokenizer(text, vocabulary=vocabulary)
    sentences = TEXT.splitlines()[:20]
    assert [several.encode(line) for line in sentences] == [whole.encode(line) for line in sentences]
    assert len(asked) == 2
    monkeypatch.setattr(narrow_tokenizer, "MOST_LOOKUPS", 3)
    assert Tokenizer(text, vocabulary=vocabulary).encode("word") == whole.encode("word")
    assert len(asked) == 3


def test_the_table_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    text = byte_level().to_str()
    tensors = vocabulary_tensors(text)
    assert tensors is not None
    write_safetensors(tmp_path / "tokenizer.table", tensors)
    read = Tokenizer(unwanted, vocabulary=Vocabulary.open(tmp_path / "tokenizer.table"))
    assert read.encode("def naïve(): <|end|>") == Tokenizer(text).encode("def naïve(): <|end|>")


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    tensors = vocabulary_tensors(plain().to_str())
    assert tensors is not None
    write_safetensors(tmp_path / "tokenizer.table", tensors[:-1])
    with pytest.raises(ArtifactRefused, match=r"'tokenizer.table' cannot be read: 'lefts'"):
        Vocabulary.open(tmp_path / "tokenizer.table")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "WordPiece"},
        {"continuing_subword_prefix": "##"},
        {"end_of_word_suffix": "</w>"},
        {"dropout": 0.1},
        {"vocab": {"a": 0, "b": 1, "ab": 3}, "merges": [["a", "b"]]},
        {"vocab": {}, "merges": []},
        {"vocab": {"<0x41>": 0, "b": 1, "<0x41>b": 2}, "merges": [["<0x41>", "b"]]},
    ],
    ids=["kind", "prefix", "suffix", "dropout", "hole", "empty", "joins a byte"],
)
def test_other_tokenizers_have_no_table(change: dict[str, object]) -> None:
    value = json.loads(plain().to_str())
    value["model"] |= change
    assert vocabulary_tensors(json.dumps(value)) is None


def test_a_table_that_encodes_otherwise_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "find", lambda *_: None)
    assert vocabulary_tensors(byte_level().to_str()) is None


def test_ids_fit_the_tables_numbers() -> None:
    _, vocabulary, _ = made("bytes")
    assert all(vocabulary.find(vocabulary.text(token) or "") == token for token in range(len(vocabulary)))
    assert vocabulary.find("no such token") is None
    assert vocabulary.text(-1) is vocabulary.text(len(vocabulary)) is None
    assert vocabulary.longest == max(len(vocabulary.text(token) or "") for token in range(len(vocabulary)))
    assert np.iinfo(np.int32).max > len(vocabulary)
