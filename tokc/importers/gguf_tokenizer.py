"""A tokenizer built from GGUF metadata with the tokenizers library.

Built here rather than by transformers' own GGUF converter because that one has no row for "smollm" (it splits
digits otherwise than the model was trained with), and because it costs an import of transformers. The split
patterns are those of llama.cpp's `llama-vocab.cpp` and of the models' own `tokenizer.json`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tokc.errors import ImportRefused
from tokc.importers.gguf_file import GgufFile, Metadata
from tokc.importers.tokenizer import Texts

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED = 3, 4
SPACE = "\u2581"
SPECIAL_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Split:
    """State how a byte-level vocabulary cuts text before merging.

    `single_digits` takes digits one by one first; `composed` normalizes to NFC; `whole_words` looks pieces up
    before merging; `begins` says that the begin token is added unless the file says otherwise.
    """

    pattern: str
    single_digits: bool = False
    composed: bool = False
    whole_words: bool = False
    begins: bool = False


# `tokenizer.ggml.pre` -> how it cuts
SPLITS: Mapping[str, Split] = {
    "default": Split(_GPT2),
    "gpt-2": Split(_GPT2),
    "phi-2": Split(_GPT2),
    "olmo": Split(_GPT2),
    "mpt": Split(_GPT2),
    "smollm": Split(_GPT2, single_digits=True),
    "starcoder": Split(_GPT2, single_digits=True),
    "refact": Split(_GPT2, single_digits=True),
    "command-r": Split(_GPT2, single_digits=True),
    "llama-bpe": Split(_LLAMA3, whole_words=True, begins=True),
    "llama3": Split(_LLAMA3, whole_words=True, begins=True),
    "llama-v3": Split(_LLAMA3, whole_words=True, begins=True),
    "falcon3": Split(_LLAMA3, whole_words=True, begins=True),
    "dbrx": Split(_LLAMA3),
    "smaug-bpe": Split(_LLAMA3),
    "stablelm2": Split(_QWEN2),
    "qwen2": Split(_QWEN2, composed=True),
    "deepseek-r1-qwen": Split(_QWEN2, composed=True),
    "gpt-4o": Split(_O200K),
    "tekken": Split(_TEKKEN, whole_words=True, begins=True),
}


def gguf_texts(file: GgufFile) -> Texts:
    """Return a file's tokenizer, chat template and special tokens; a file without a vocabulary has none.

    Raises: ImportRefused if the tokenizer is of an unknown kind.
    """
    metadata = file.metadata
    if f"{PREFIX}tokens" not in metadata:
        return Texts()
    tokens = _list(metadata, "tokens")
    template = metadata.get("tokenizer.chat_template")
    special = {name: _token(tokens, metadata.get(f"{PREFIX}{key}")) for name, key in SPECIAL_IDS.items()}
    return Texts(
        tokenizer_json=_build(file, tokens).to_str(),
        chat_template=template if isinstance(template, str) else None,
        special_tokens={name: text for name, text in special.items() if text is not None},
    )


def _build(file: GgufFile, tokens: list[str]) -> Tokenizer:
    metadata = file.metadata
    model = str(metadata.get(f"{PREFIX}model"))
    if model == "llama" and str(metadata.get("general.architecture")).startswith("gemma"):
        model = "gemma"
    if model not in BUILDERS:
        raise ImportRefused(
            f"unknown tokenizer '{model}'; supported are {', '.join(BUILDERS)}",
            where=str(file.path),
            hint="take the model's Hugging Face folder instead",
        )
    tokenizer, begins = BUILDERS[model](file, tokens)
    _add_special(tokenizer, tokens, metadata)
    _frame(tokenizer, tokens, metadata, begins=begins)
    return tokenizer


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    pre = str(file.metadata.get(f"{PREFIX}pre", "default"))
    if pre not in SPLITS:
        raise ImportRefused(
            f"unknown pre-tokenizer '{pre}'; supported are {', '.join(SPLITS)}",
            where=str(file.path),
            hint="take the model's Hugging Face folder instead",
        )
    split = SPLITS[pre]
    merges = [cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in _list(file.metadata, "merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = splitter(split)
    tokenizer.model = models.BPE(vocabulary, merges, ignore_merges=split.whole_words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.begins


def splitter(split: Split) -> Tokenizer:
    """Return a tokenizer that cuts text and has no vocabulary yet."""
    tokenizer = Tokenizer(models.BPE())
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split.single_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *digits,
            pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    scores = _list(file.metadata, "scores")
    tokenizer = _pieces(tokens, {token: float(score) for token, score in zip(tokens, scores, strict=True)})
    prefixed = bool(file.metadata.get(f"{PREFIX}add_space_prefix", True))
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return tokenizer, True


def _gemma(_: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    """Build Gemma's tokenizer, whose merges follow the order of the vocabulary and not the scores.

    Files spell runs of spaces as spaces, where the tokenizer sees them replaced.
    """
    tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    tokenizer = _pieces(tokens, {token: -float(index) for index, token in enumerate(tokens)})
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer, True


def _pieces(tokens: list[str], scores: Mapping[str, float]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = "<unk>" if "<unk>" in vocabulary else None
    merges = _merges(vocabulary, scores)
    return Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Recover the merges of a scored vocabulary: every way to cut a piece into two, the best pieces first."""
    found: list[tuple[float, str, str]] = []
    for piece, score in scores.items():
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found.extend((score, left, right) for left, right in known)
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


BUILDERS: Mapping[str, Callable[[GgufFile, list[str]], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "gemma": _gemma,
}


def _add_special(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Metadata) -> None:
    """Add the tokens that the file marks, so that text is never cut inside them."""
    kinds = metadata.get(f"{PREFIX}token_type")
    if not isinstance(kinds, list):
        return
    marked = list(zip(tokens, kinds, strict=True))
    for token, kind in marked:
        if kind in {CONTROL, USER_DEFINED} and tokenizer.token_to_id(token) is not None:
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])


def _frame(tokenizer: Tokenizer, tokens: Sequence[str], metadata: Metadata, *, begins: bool) -> None:
    """Put the begin and end tokens around a text, as far as the file asks for them."""
    first = _token(tokens, metadata.get(f"{PREFIX}bos_token_id"))
    last = _token(tokens, metadata.get(f"{PREFIX}eos_token_id"))
    before = [first] if first is not None and metadata.get(f"{PREFIX}add_bos_token", begins) else []
    after = [last] if last is not None and metadata.get(f"{PREFIX}add_eos_token", False) else []
    if not before and not after:
        return
    single = [*before, "$A", *after]
    pair = [*single, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    used = dict.fromkeys([*before, *after])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in used]
    )


def _list(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(f"{PREFIX}{key}")
    if not isinstance(value, list):
        raise ImportRefused(f"the tokenizer has no '{PREFIX}{key}'", hint="fetch the file again")
    return value


def _token(tokens: Sequence[str], index: object) -> str | None:
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
