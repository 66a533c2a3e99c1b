"""Tiny models that read text: every family's, with a tokenizer of one token a byte."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.tiny_models import tiny_folder

BYTES = 256
SPECIAL = ("<s>", "</s>")


def reading_folder(path: Path, family: str = "smollm2", *, bos: bool = False, **overrides: Any) -> Path:
    """Save a tiny model that reads bytes; `bos` begins every text with token 256, `<s>`."""
    folder = tiny_folder(
        family,
        path,
        **{"vocab_size": BYTES + 8, "bos_token_id": BYTES, "eos_token_id": BYTES + 1} | overrides,
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BYTES)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
