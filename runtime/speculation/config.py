"""What a user asks of speculation, in vLLM's names."""

import json
from collections.abc import Mapping
from typing import NamedTuple, Self

from tokc.errors import UnknownOption

WHERE = "speculative config"
METHODS = ("ngram", "suffix", "none")
MAX_TOKENS = 12
EXAMPLE = """as in '{"method": "ngram"}'"""


class SpeculativeConfig(NamedTuple):
    """Say how to draft.

    `method` is one of METHODS; `num_speculative_tokens` the most tokens of a draft, None for MAX_TOKENS.
    """

    method: str
    num_speculative_tokens: int | None = None

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
        return cls(str(method), _count(value))


def _count(value: Mapping[str, object]) -> int | None:
    count = value.get("num_speculative_tokens")
    if count is None:
        return None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_TOKENS:
        raise UnknownOption(f"num_speculative_tokens is '{count}', expected 1 to {MAX_TOKENS}", where=WHERE)
    return count
