"""Holds an answer to a JSON schema, a regular expression, a choice or a grammar, one token at a time.

The grammar says which tokens may come next and the sampler leaves the others out, so that an answer that
ends by itself matches; one that is cut off at `max_tokens` may not. The parser is llguidance's.
Source: guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np

from tokc.errors import RequestRefused

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from tokc.runtime.executors.base import Float32s
    from tokc.runtime.tokenizer import Tokenizer

ConstraintKind = Literal["json_schema", "regex", "choice", "grammar", "lark"]

# A model that is forced into JSON may else go on with blanks for ever.
WHITESPACE = r" ?|\n {0,40}"
MAX_KEPT = 64
MAX_CHARACTERS = 1 << 18
_LOG_NOTHING = 0


@dataclass(frozen=True)
class Constraint:
    """Say what an answer must match.

    `text` is a JSON schema, a regular expression (of the whole answer), a JSON array of texts to choose from
    or a context-free grammar (`lark` in Lark's notation, `grammar` in Lark's or GBNF's).
    """

    kind: ConstraintKind
    text: str


ANY_OBJECT = Constraint("json_schema", '{"type": "object"}')


def json_schema(schema: Mapping[str, object] | bool) -> Constraint:  # noqa: FBT001 - true is a schema
    """Return the constraint that a JSON schema is."""
    return Constraint("json_schema", json.dumps(schema, sort_keys=False))


class Matcher:
    """Follows one answer through its grammar; where its parser gives up, `error` is set."""

    def __init__(self, matcher: "LLMatcher") -> None:
        """Start before the first token."""
        self._matcher = matcher
        self.error: RequestRefused | None = None

    def mask(self, scores: "Float32s") -> None:
        """Set the scores f32[vocab] of the tokens that may not come next to minus infinity."""
        if self.error is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._note_error()
        if self.error is None:
            scores[np.unpackbits(bits, count=len(scores), bitorder="little") == 0] = -np.inf

    def accept(self, token: int) -> None:
        """Go on behind a token that `mask` left."""
        if self.error is None:
            self._matcher.consume_token(token)
            self._note_error()

    @property
    def complete(self) -> bool:
        """Say whether the answer may end here."""
        return self.error is None and bool(self._matcher.is_accepting())

    def _note_error(self) -> None:
        if self._matcher.is_error():
            self.error = _refused(self._matcher.get_error())


class Grammars:
    """Compiles constraints for one vocabulary, and keeps those that were asked for last."""

    def __init__(self, tokenizer: "Tokenizer", vocab_size: int, eos_ids: Collection[int]) -> None:
        """Mask rows of `vocab_size` logits; only `eos_ids` end an answer, where it is complete."""
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, sorted(eos_ids)
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, constraint: Constraint) -> Matcher:
        """Return a matcher at its start; the first of a constraint takes up to a second to compile.

        Raises: RequestRefused if the constraint is wrong or not supported, or llguidance is not installed.
        """
        if not self._eos_ids:
            raise _refused("the model has no token that ends an answer")
        with self._lock:
            if constraint not in self._kept:
                self._kept[constraint] = self._compile(constraint)
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(constraint)
            return Matcher(self._kept[constraint].deep_copy())

    def _compile(self, constraint: Constraint) -> "LLMatcher":
        try:
            import llguidance
        except ImportError as error:
            raise RequestRefused(
                "structured output needs the package llguidance",
                hint="install the extra that has it: tokc-compiler[serve]",
            ) from error
        if len(constraint.text) > MAX_CHARACTERS:
            raise _refused(f"it has {len(constraint.text)} characters, at most {MAX_CHARACTERS} are read")
        if self._vocabulary is None:
            self._vocabulary = llguidance.LLTokenizer(
                self._tokenizer.json_text, n_vocab=self._vocab_size, eos_token=self._eos_ids
            )
        try:
            text = _grammar(constraint)
        except (ValueError, TypeError) as error:
            raise _refused(str(error)) from error
        matcher = llguidance.LLMatcher(self._vocabulary, text, log_level=_LOG_NOTHING)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return matcher


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher, grammar_from

    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(
            constraint.text, overrides={"whitespace_pattern": WHITESPACE}
        )
    return grammar_from(constraint.kind, constraint.text)


def _refused(reason: str) -> RequestRefused:
    lines = reason.splitlines()
    return RequestRefused(f"the structured output cannot be held to: {lines[0] if lines else 'no reason'}")
