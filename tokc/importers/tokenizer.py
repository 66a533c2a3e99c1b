"""The tokenizer, chat template and special tokens of a Hugging Face folder, as texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import read_json

TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
SLOW_FILES = ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


@dataclass(frozen=True)
class Texts:
    """Hold what turns text into tokens and messages into text; None where a model has none."""

    tokenizer_json: str | None = None
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def folder_texts(folder: Path) -> Texts:
    """Return a folder's texts; a folder without any tokenizer file has none.

    Raises: ImportRefused if a file is damaged, or there is only a kind of tokenizer that cannot be converted.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    return Texts(_tokenizer_json(folder), _chat_template(folder, config), _special_tokens(folder, config))


def checked(text: str, origin: str) -> str:
    """Return a tokenizer's text without its defaults for truncation and padding, which callers choose.

    Raises: ImportRefused if the tokenizers library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise ImportRefused(
            f"'{TOKENIZER}' cannot be read: {error}", where=origin, hint="fetch the file again"
        ) from error
    if tokenizer.truncation is None and tokenizer.padding is None:
        return text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.to_str()


def _tokenizer_json(folder: Path) -> str | None:
    path = folder / TOKENIZER
    if path.is_file():
        return checked(path.read_text(encoding="utf-8"), str(path))
    if any((folder / name).is_file() for name in SLOW_FILES):
        return _converted(folder)
    return None


def _converted(folder: Path) -> str:
    """Convert an older tokenizer by transformers, which knows every kind."""
    try:
        from transformers import AutoTokenizer

        return checked(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str(), str(folder))
    except (ImportError, ValueError, OSError, AttributeError) as error:
        raise ImportRefused(
            f"the folder has no '{TOKENIZER}' and its tokenizer could not be converted: {error}",
            where=str(folder),
            hint=f"install transformers and sentencepiece, or fetch '{TOKENIZER}' into the folder",
        ) from error


def _chat_template(folder: Path, config: Mapping[str, object]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    older = folder / "chat_template.json"
    template = config.get("chat_template")
    if template is None and older.is_file():
        template = read_json(older).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    path = folder / "special_tokens_map.json"
    given = {**(read_json(path) if path.is_file() else {}), **config}
    tokens = {name: _content(given.get(name)) for name in SPECIAL_TOKENS}
    return {name: text for name, text in tokens.items() if text is not None}


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
