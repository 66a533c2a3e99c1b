"""Small tokenizers of both kinds, as transformers saves them beside a tiny model."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = """The quick brown fox can't jump; it's "lazy"...  Two  spaces,\ttabs\r\n\r\nand lines.
Größe, naïve café, łódź. Привет, мир! Ελληνικά. שלום. مرحبا. नमस्ते. 你好，世界。こんにちは。안녕 🙂👩‍👩‍👧 𝔘𝔫𝔦
def f(x): return x**2 != 3   # ½ ² <|im_start|>user<|im_end|> In 2024, 12345 of 67 890; ٣٤٥ 3.14"""
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
UNKNOWN = "<unk>"
TEMPLATE = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(kind: str) -> Tokenizer:
    """Return a byte-level tokenizer trained on the text, that cuts as GPT-2's or Llama 3's does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    if kind == "llama3":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), cut]
        )
    else:
        tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[UNKNOWN, *SPECIAL.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def sentencepiece(*, prefixed: bool) -> Tokenizer:
    """Return a tokenizer of pieces that falls back to bytes, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefixed else steps)
    special = [UNKNOWN, *SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    words = [word for word in TEXT.replace(" ", " ▁").split(" ") if word.isprintable()]
    tokenizer.train_from_iterator(words, trainer)
    trained = Tokenizer.from_str(tokenizer.to_str())
    tail = [decoders.Strip(" ", 1, 0)] if prefixed else []
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return trained


TOKENIZERS = {
    "gpt2": lambda: byte_level("gpt2"),
    "llama3": lambda: byte_level("llama3"),
    "sentencepiece": lambda: sentencepiece(prefixed=True),
    "sentencepiece without a prefix": lambda: sentencepiece(prefixed=False),
}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Save a tokenizer and a chat template beside a model."""
    from transformers import PreTrainedTokenizerFast

    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    saved.chat_template = TEMPLATE
    saved.save_pretrained(folder)
