"""Lays out a tokenizer's vocabulary as the table that `tokc.runtime.vocabulary` looks into."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from tokc.artifact.writer import Tensor
from tokc.runtime.narrow_tokenizer import byte_tokens
from tokc.runtime.tokenizer import Tokenizer
from tokc.runtime.vocabulary import Vocabulary

SLOTS_A_TOKEN = 2
# Written only if the table encodes these as the tokenizer itself does.
SAMPLE = (
    "The quick brown fox doesn't jump 1234 times; it's  späť, naïve and наконец 日本語のテキスト 🦊.\n\n",
    "def f(x: int) -> str:\n    return f'{x + 1:>10}'\t# <|im_end|> </s> <unk>\x00\x07\ufffd\u200d",
    " leading",
    "trailing ",
    "▁",
    "",
    "\r\n",
    "e\u0301 ﬁ Å",
)


# What a token's text may have beside that of its parts.
ADDITIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
Arrays = dict[str, npt.NDArray[Any]]


def vocabulary_tensors(tokenizer_json: str) -> list[Tensor] | None:
    """Return the tensors of the table; None if the tokenizer is of a kind that it cannot hold."""
    value = json.loads(tokenizer_json)
    model = value.get("model", {})
    if not _is_suited(model):
        return None
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    stand_ins = {model.get("unk_token")} | byte_tokens()
    if any(not stand_ins.isdisjoint(merge) for merge in merges):
        return None
    arrays: Arrays = {
        "shell": _bytes(_shell(value).encode()),
        "longest": np.array([max(map(len, texts))], np.int32),
        **_tokens([text.encode() for text in texts]),
        **_merges(model["vocab"], merges),
    }
    return _tensors(arrays) if _agrees(tokenizer_json, arrays) else None


def _is_suited(model: Mapping[str, Any]) -> bool:
    """Say whether ids have no holes, and a token is made of its parts' text and of nothing else."""
    vocab = model.get("vocab")
    return (
        model.get("type") == "BPE"
        and isinstance(vocab, dict)
        and sorted(vocab.values()) == list(range(len(vocab)))
        and len(vocab) > 0
        and not any(model.get(name) for name in ADDITIONS)
    )


def _shell(value: Mapping[str, Any]) -> str:
    """Return the tokenizer with its added tokens as its vocabulary, so that those keep their ids."""
    added = {token["content"]: token["id"] for token in value.get("added_tokens", ())}
    model = {**value["model"], "vocab": added, "merges": []}
    return json.dumps({**value, "model": model}, ensure_ascii=False, separators=(",", ":"))


def _tokens(texts: Sequence[bytes]) -> Arrays:
    slots = np.full(1 << (SLOTS_A_TOKEN * len(texts)).bit_length(), -1, np.int32)
    last = len(slots) - 1
    for token, text in enumerate(texts):
        slot = crc32(text) & last
        while slots[slot] >= 0:
            slot = slot + 1 & last
        slots[slot] = token
    starts = np.array([0, *accumulate(map(len, texts))], np.int32)
    return {"text": _bytes(b"".join(texts)), "starts": starts, "slots": slots}


def _merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]]) -> Arrays:
    made = np.array([vocab[left + right] for left, right in merges], np.int32)
    lefts = np.array([vocab[left] for left, _ in merges], np.int32)
    ranks = np.argsort(made, kind="stable").astype(np.int32)
    merged = np.searchsorted(made[ranks], np.arange(len(vocab) + 1)).astype(np.int32)
    return {"merged": merged, "ranks": ranks, "lefts": lefts[ranks]}


def _agrees(tokenizer_json: str, arrays: Arrays) -> bool:
    whole, vocabulary = Tokenizer(tokenizer_json), Vocabulary(arrays)
    for text in SAMPLE:
        narrow = Tokenizer(lambda: tokenizer_json, vocabulary=vocabulary)
        ids = whole.encode(text)
        if narrow.encode(text) != ids or narrow.decode(ids) != whole.decode(ids):
            return False
    return whole.vocab_size == narrow.vocab_size


def _tensors(arrays: Arrays) -> list[Tensor]:
    kinds = {np.dtype(np.uint8): "u8", np.dtype(np.int32): "i32"}
    return [
        Tensor(name, kinds[array.dtype], array.shape, array.nbytes, partial(np.asarray, array))
        for name, array in arrays.items()
    ]


def _bytes(content: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)
