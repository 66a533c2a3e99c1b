"""A Hugging Face tokenizer as GGUF metadata, the reverse of `tokc.importers.gguf_tokenizer`.

GGUF names the way a byte-level vocabulary cuts text (`tokenizer.ggml.pre`) instead of stating it, so the name
is found by how the tokenizer cuts a text of many scripts. What was written is read again and must encode that
text alike.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from tokc.errors import TokcError
from tokc.importers.gguf_file import GgufFile
from tokc.importers.gguf_tokenizer import (
    CONTROL,
    PREFIX,
    SPACE,
    SPECIAL_IDS,
    SPLITS,
    USER_DEFINED,
    gguf_texts,
)
from tokc.importers.gguf_tokenizer import splitter as splitter_of
from tokc.ir.program import Assets

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
LAST_SCORE = -1e6
PROBE = """The quick brown fox can't jump; it's "lazy"...  Two  spaces,\ttabs\r\n\r\n and lines. I'LL WE'VE
Größe, naïve café, ÆØÅ, łódź. Привет, мир! Ελληνικά. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया.
你好，世界。こんにちは世界。안녕하세요. ไทย 🙂👩‍👩‍👧‍👦🇨🇭 𝔘𝔫𝔦 ﬁ \u200b\u00a0x\u3000y
camelCaseWords HTTPServer e\u0301
In 2024, 12345 of 67 890; ٣٤٥ 3.14159 def f(x): return x**2 != 3   # ½ ² Ⅷ a/b//c"""

Metadata = dict[str, object]


@dataclass(frozen=True)
class Vocabulary:
    """Hold a tokenizer's own description and its tokens by id."""

    model: Mapping[str, object]
    added: Mapping[str, bool]
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, text: str, size: int) -> "Vocabulary":
        """Read a `tokenizer.json`; ids up to `size`, the embedding's rows, that have no token are padded.

        Raises: TokcError if it is of a kind that GGUF has no word for.
        """
        described = json.loads(text)
        model = described["model"]
        if model.get("type", "BPE") != "BPE":
            raise _refused(f"a tokenizer of kind '{model.get('type')}' has no form in GGUF; supported is BPE")
        added = {entry["content"]: bool(entry["special"]) for entry in described.get("added_tokens", ())}
        ids = {
            **model["vocab"],
            **{entry["content"]: entry["id"] for entry in described.get("added_tokens", ())},
        }
        by_id = {index: token for token, index in ids.items()}
        if by_id and max(by_id) >= size:
            raise _refused(f"the tokenizer has {max(by_id) + 1} tokens, the embedding {size} rows")
        return cls(model, added, tuple(by_id.get(index, f"[PAD{index}]") for index in range(size)))

    @property
    def byte_fallback(self) -> bool:
        """Return whether it falls back to tokens of single bytes, as SentencePiece vocabularies do."""
        return bool(self.model.get("byte_fallback"))

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges in order; files spell them as pairs or as one text."""
        listed = self.model["merges"]
        assert isinstance(listed, list), "merges are a list"
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in listed]
        return [(left, right) for left, right in pairs]

    def kinds(self) -> list[int]:
        """Return GGUF's type of each token."""
        known = {*self.model["vocab"], *self.added}  # type: ignore[misc]
        unknown = self.model.get("unk_token")
        return [self._kind(token, unknown) if token in known else UNUSED for token in self.tokens]

    def _kind(self, token: str, unknown: object) -> int:
        if token == unknown:
            return UNKNOWN
        if token in self.added:
            return CONTROL if self.added[token] else USER_DEFINED
        is_byte = self.byte_fallback and token.startswith("<0x") and token.endswith(">") and len(token) == 6
        return BYTE if is_byte else NORMAL

    def scores(self) -> list[float]:
        """Return a score a token, the better the earlier it is merged."""
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(self.merges()):
            ranks.setdefault(left + right, rank)
        return [-float(ranks[token]) if token in ranks else LAST_SCORE for token in self.tokens]


def vocabulary_metadata(assets: Assets, architecture: str, size: int) -> Metadata:
    """Return the tokenizer and chat template as metadata, as far as a program has them.

    `size` is the number of the embedding's rows. Raises: TokcError if GGUF cannot express the tokenizer.
    """
    template = {} if assets.chat_template is None else {"tokenizer.chat_template": assets.chat_template}
    if assets.tokenizer_json is None:
        return dict(template)
    tokenizer = Tokenizer.from_str(assets.tokenizer_json)
    vocabulary = Vocabulary.of(assets.tokenizer_json, size)
    metadata: Metadata = dict(template)
    kinds = vocabulary.kinds()
    metadata[f"{PREFIX}token_type"] = kinds
    if vocabulary.byte_fallback:
        # Files spell the spaces of tokens that users defined as spaces.
        metadata[f"{PREFIX}tokens"] = [
            token.replace(SPACE, " ") if kind == USER_DEFINED else token
            for token, kind in zip(vocabulary.tokens, kinds, strict=True)
        ]
        metadata[f"{PREFIX}model"] = "llama"
        metadata[f"{PREFIX}scores"] = vocabulary.scores()
        first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        metadata[f"{PREFIX}add_space_prefix"] = bool(first) and first[0].startswith(SPACE)
    else:
        metadata[f"{PREFIX}tokens"] = list(vocabulary.tokens)
        metadata[f"{PREFIX}model"] = "gpt2"
        metadata[f"{PREFIX}pre"] = _pre(tokenizer, vocabulary)
        metadata[f"{PREFIX}merges"] = [" ".join(pair) for pair in vocabulary.merges()]
    metadata |= _special(assets, tokenizer)
    _check(metadata, architecture, tokenizer)
    return metadata


def _special(assets: Assets, tokenizer: Tokenizer) -> Metadata:
    ids = {
        key: tokenizer.token_to_id(assets.special_tokens[name])
        for name, key in SPECIAL_IDS.items()
        if name in assets.special_tokens
    }
    metadata: Metadata = {f"{PREFIX}{key}": index for key, index in ids.items() if index is not None}
    framed = tokenizer.encode("a").ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    at = next((at for at in range(len(framed)) if framed[at : at + len(bare)] == bare), 0)
    before, after = framed[:at], framed[at + len(bare) :]
    metadata[f"{PREFIX}add_bos_token"] = bool(before)
    metadata[f"{PREFIX}add_eos_token"] = bool(after)
    if before:
        metadata[f"{PREFIX}bos_token_id"] = before[0]
    if after:
        metadata[f"{PREFIX}eos_token_id"] = after[-1]
    return metadata


def _pre(tokenizer: Tokenizer, vocabulary: Vocabulary) -> str:
    """Return the name of how the tokenizer cuts text.

    Raises: TokcError if it cuts as none of the names does.
    """
    whole = bool(vocabulary.model.get("ignore_merges"))
    cut = _pieces(tokenizer)
    for name, split in SPLITS.items():
        if name != "default" and split.whole_words == whole and _pieces(splitter_of(split)) == cut:
            return name
    raise _refused(f"the tokenizer cuts text as none of those that GGUF names: {', '.join(SPLITS)}")


def _pieces(tokenizer: Tokenizer) -> list[str]:
    normalizer, cutter = tokenizer.normalizer, tokenizer.pre_tokenizer
    text = PROBE if normalizer is None else normalizer.normalize_str(PROBE)
    return [text] if cutter is None else [piece for piece, _ in cutter.pre_tokenize_str(text)]


def _check(metadata: Metadata, architecture: str, tokenizer: Tokenizer) -> None:
    """Read the metadata as an importer does and encode with it."""
    stated = {**metadata, "general.architecture": architecture}
    again = Tokenizer.from_str(str(gguf_texts(GgufFile(Path(), stated, {})).tokenizer_json))
    for text in (PROBE, *PROBE.splitlines(), " a", ""):
        if again.encode(text).ids != tokenizer.encode(text).ids:
            raise _refused("the tokenizer would encode otherwise as GGUF expresses it")


def _refused(problem: str) -> TokcError:
    return TokcError(problem, hint="export the model with --to hf, which keeps its tokenizer as it is")
