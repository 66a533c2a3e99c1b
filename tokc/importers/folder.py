"""A Hugging Face folder becomes a Program: config.json, safetensors, tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tokc.errors import ImportRefused
from tokc.importers.architecture import architecture_of
from tokc.importers.checkpoint import Checkpoint, Weight, plain_weights, read_json, safetensors_arrays
from tokc.importers.decoder import EMBEDDING, HEAD, decoder_program
from tokc.importers.families import family_of
from tokc.importers.family import Family
from tokc.importers.layouts import is_buffer, laid_out, named_alike
from tokc.importers.lora import adapter_hashes, merge_adapters
from tokc.importers.quantized import empty_biases, quantized_weights
from tokc.importers.tokenizer import folder_texts
from tokc.ir.program import Assets, Program
from tokc.model_files import sha256

CONFIG = "config.json"
GENERATION = "generation_config.json"
TEXT_PREFIX = re.compile(r"^(language_model\.model\.|model\.language_model\.)")
HEAD_PREFIX = re.compile(r"^language_model\.lm_head\.")


def load_folder(path: Path, context: int | None = None, lora: Sequence[Path] = ()) -> Program:
    """Import a folder; `context` in tokens caps the positions (default: the model's, at most 8192).

    The LoRA adapters in the folders `lora` are merged into the weights in order.
    Raises: ImportRefused if the folder is no model, is damaged, or is of an unknown kind.
    """
    family, config, generation = folder_config(path)
    weights, spare = _weights(path, config, family)
    # Files state untied embeddings by their presence, and older ones leave the flag out.
    tied = bool(config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", False)))
    tied = tied or (HEAD not in weights and "tie_word_embeddings" not in config and EMBEDDING in weights)
    config = {**config, "tie_word_embeddings": tied}
    architecture = architecture_of(family, config, context, str(path / CONFIG))
    weights = merge_adapters(_text_only(weights), lora, lambda name: _text_name(name, family))
    checkpoint = Checkpoint(str(path), laid_out(weights, architecture, str(path)), spare)
    assets = replace(
        folder_assets(path, generation, _sources(path), lora), source_config=decoder_config(config, family)
    )
    return decoder_program(architecture, checkpoint, assets)


def folder_config(path: Path) -> tuple[Family, dict[str, object], dict[str, object]]:
    """Return a folder's family, its configuration (of text, token ids included) and generation defaults.

    Raises: ImportRefused if there is no configuration, or one of an unknown kind.
    """
    given = _config(path)
    family = family_of(given, str(path / CONFIG))
    text = given.get("text_config")
    config = {**given, **text} if isinstance(text, dict) else given
    generation = read_json(path / GENERATION) if (path / GENERATION).is_file() else {}
    ids = {
        key: generation[key] for key in ("bos_token_id", "eos_token_id") if generation.get(key) is not None
    }
    return family, {**config, **ids}, generation


def decoder_config(config: dict[str, object], family: Family) -> dict[str, object]:
    """Return the configuration of the decoder alone: of text, unquantized, under the family's own names."""
    dropped = {"quantization_config", "text_config", "vision_config", "audio_config", "torch_dtype", "dtype"}
    kept = {key: value for key, value in config.items() if key not in dropped}
    return {**kept, "architectures": [family.architectures[0]], "model_type": family.model_types[0]}


def _weights(
    path: Path, config: dict[str, object], family: Family
) -> tuple[dict[str, Weight], frozenset[str]]:
    """Return the weights by their names in a model of text only, and which of them it can do without."""
    arrays = {name: array for name, array in safetensors_arrays(path).items() if not is_buffer(name)}
    quantized = quantized_weights(config, arrays, str(path))
    spare = empty_biases(quantized, arrays)
    named = {**plain_weights(arrays, str(path)), **quantized}
    weights = {_text_name(name, family): weight for name, weight in named.items()}
    return weights, frozenset(_text_name(name, family) for name in spare)


def _config(path: Path) -> dict[str, object]:
    if not path.is_dir():
        raise ImportRefused(f"there is no folder '{path}'", hint="give a Hugging Face folder or a .gguf file")
    if not (path / CONFIG).is_file():
        raise ImportRefused(
            f"'{path}' is not a model folder: it has no '{CONFIG}'",
            where=str(path),
            hint="give the folder that holds config.json and the .safetensors files, or a .gguf file",
        )
    return read_json(path / CONFIG)


def _text_name(name: str, family: Family) -> str:
    """Return a tensor's name in a model of text only, as Llama has it."""
    return named_alike(HEAD_PREFIX.sub("lm_head.", TEXT_PREFIX.sub("model.", name)), family)


def _text_only(weights: dict[str, Weight]) -> dict[str, Weight]:
    return {name: weight for name, weight in weights.items() if name.startswith(("model.", "lm_head."))}


def folder_assets(
    path: Path, generation: dict[str, object], sources: Sequence[Path], lora: Sequence[Path]
) -> Assets:
    """Return what lies beside the weights in a folder; `sources` are the files whose hashes are kept.

    Raises: ImportRefused if the tokenizer is damaged or of an unknown kind.
    """
    texts = folder_texts(path)
    return Assets(
        tokenizer_json=texts.tokenizer_json,
        chat_template=texts.chat_template,
        special_tokens=texts.special_tokens,
        generation_config=generation,
        licence=_licence(path),
        provenance={file.name: sha256(file) for file in sources} | adapter_hashes(lora),
    )


def _sources(path: Path) -> list[Path]:
    kept = {CONFIG, GENERATION, "tokenizer.json"}
    return sorted(file for file in path.iterdir() if file.name in kept or file.suffix == ".safetensors")


def _licence(path: Path) -> str | None:
    """Return the licence that the model card's head states."""
    card = path / "README.md"
    if not card.is_file():
        return None
    found = re.search(
        r"^license: *(\S+) *$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    return found.group(1) if found else None
