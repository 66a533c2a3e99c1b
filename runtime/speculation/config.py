"""What a user asks of speculation, in vLLM's names."""

import json
from collections.abc import Mapping
from typing import NamedTuple, Self

from tokc.errors import UnknownOption

WHERE = "speculative config"
DRAFT_MODEL, HEADS = "draft_model", ("eagle", "medusa")
METHODS = ("ngram", "suffix", *HEADS, DRAFT_MODEL, "none")
MAX_TOKENS = 12
# A draft of a model takes a call a token, whose later ones seldom hold.
DEFAULT_MODEL_TOKENS = 6
EXAMPLE = """as in '{"method": "ngram"}'"""


class SpeculativeConfig(NamedTuple):
    """Say how to draft.

    `method`: ngram looks into a request's own text, suffix also into answers to earlier requests of its key;
    eagle and medusa are heads in the artifact, draft_model runs the artifact `model`. A draft has at most
    `num_speculative_tokens`, None for a number that suits the method.
    """

    method: str
    num_speculative_tokens: int | None = None
    model: str | None = None

    @property
    def most(self) -> int:
        """Return the most tokens of a draft."""
        default = MAX_TOKENS if self.method in {"ngram", "suffix"} else DEFAULT_MODEL_TOKENS
        return self.num_speculative_tokens or default

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a JSON object, as in `{"method": "ngram", "num_speculative_tokens": 4}`.

        Raises: UnknownOption naming the key or value that is wrong.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UnknownOption(f"'{text}' is not JSON: {error}", where=WHERE, hint=EXAMPLE) from error
        if not isinstance(value, dict):
            raise UnknownOption(f"'{text}' is no JSON object", where=WHERE, hint=EXAMPLE)
        return cls.of(value)

    @classmethod
    def of(cls, value: Mapping[str, object]) -> Self:
        """Check keys and values.

        Raises: UnknownOption naming the one that is wrong.
        """
        unknown = next((key for key in value if key not in cls._fields), None)
        if unknown is not None:
            raise UnknownOption(f"unknown key '{unknown}'; choose from {', '.join(cls._fields)}", where=WHERE)
        method = value.get("method")
        if method not in METHODS:
            raise UnknownOption(f"unknown method '{method}'; choose from {', '.join(METHODS)}", where=WHERE)
        return cls(str(method), _count(value), _model(value))


def _model(value: Mapping[str, object]) -> str | None:
    model, wanted = value.get("model"), value["method"] == DRAFT_MODEL
    if model is None and wanted:
        raise UnknownOption(f"method '{DRAFT_MODEL}' needs 'model', an artifact's folder", where=WHERE)
    if model is not None and not wanted:
        raise UnknownOption(f"'model' is for method '{DRAFT_MODEL}', not '{value['method']}'", where=WHERE)
    if model is not None and not isinstance(model, str):
        raise UnknownOption(f"model is '{model}', expected the path of an artifact", where=WHERE)
    return model


def _count(value: Mapping[str, object]) -> int | None:
    count = value.get("num_speculative_tokens")
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_TOKENS:
        raise UnknownOption(f"num_speculative_tokens is '{count}', expected 1 to {MAX_TOKENS}", where=WHERE)
    return count
