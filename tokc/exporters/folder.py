"""A folder that appears whole or not at all, and the texts that lie beside a model's weights in it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokc.errors import TokcError
from tokc.exporters.weights import Model
from tokc.importers.rope import rope_parameters
from tokc.importers.rope_divisors import GIVEN


def folder_texts(model: Model, **stated: object) -> dict[str, str]:
    """Return config.json, with what is `stated` beside the decoder's own facts, tokenizer and template.

    Raises: TokcError if config.json has no word for the model.
    """
    source, config, assets = model.assets.source_config, model.config, model.assets
    if rope_parameters(source).get("rope_type") == GIVEN:
        raise TokcError(
            "the file's divisors of rotary frequencies are no scaling that config.json has a word for",
            hint="export the model with --to gguf",
        )
    sizes = {"head_dim": config.head_dim, "num_key_value_heads": config.kv_heads}
    facts = {**source, "tie_word_embeddings": config.tied_embedding, **sizes, **stated}
    texts = {"config.json": _json(facts)}
    if assets.chat_template is not None:
        texts["chat_template.jinja"] = assets.chat_template
    if assets.generation_config:
        texts["generation_config.json"] = _json(dict(assets.generation_config))
    if assets.tokenizer_json is not None:
        texts["tokenizer.json"] = assets.tokenizer_json
        tokens = {**assets.special_tokens, "tokenizer_class": "PreTrainedTokenizerFast"}
        texts["tokenizer_config.json"] = _json({**tokens, "clean_up_tokenization_spaces": False})
    return texts


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place on success and vanishes on failure."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TokcError(f"'{folder}' exists", hint="give another --out, or move it away")
    aside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        aside.rename(folder)
    except OSError as error:
        raise TokcError(
            f"cannot write '{folder}': {error.strerror or error}",
            hint="free space or give another --out; nothing half-written was left",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
