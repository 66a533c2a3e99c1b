"""OpenAI's shapes: JSON in, checked parameters out, and the objects that go back.

Source: platform.openai.com/docs/api-reference, chat and completions. Fields that change nothing (`user`,
`store`, ...) are accepted and ignored; those that would change the answer and cannot be honoured are refused.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokc.errors import RequestRefused
from tokc.runtime.chat import Message
from tokc.runtime.sequence import FinishReason, Logprob, SamplingParams, Usage
from tokc.runtime.tokenizer import Tokenizer

Json = dict[str, Any]

MAX_CHOICES = 64
LEGACY_MAX_TOKENS = 16
FINISH_REASONS: Mapping[FinishReason, str] = {"stop": "stop", "length": "length", "abort": "stop"}
UNSUPPORTED = {
    "tools": "tool calls",
    "functions": "function calls",
    "response_format": "structured output",
    "suffix": "text after the completion",
    "best_of": "choosing the best of several",
}


@dataclass(frozen=True)
class Completion:
    """A checked request: prompts or, for a chat, conversations; each is continued `n` times."""

    prompts: tuple[str | tuple[int, ...], ...]
    conversations: tuple[tuple[Message, ...], ...]
    params: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    echo: bool

    @property
    def chat(self) -> bool:
        """Say whether the answer is in the shape of a chat's."""
        return bool(self.conversations)


class Fields:
    """Reads typed fields of a request's JSON, so that every refusal names the field."""

    def __init__(self, body: object) -> None:
        """Take the decoded body."""
        if not isinstance(body, dict):
            raise RequestRefused("the body is not a JSON object", where="body")
        self.body: Json = body

    def get(self, name: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        """Return a field; a bool is no number."""
        value = self.body.get(name)
        if value is None:
            return default
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(kind.__name__ for kind in wanted)
            raise RequestRefused(f"'{name}' is {type(value).__name__}, expected {names}", where=name)
        return value


def completion_request(body: object, defaults: SamplingParams) -> Completion:
    """Read the body of /v1/completions.

    Raises: RequestRefused naming the field.
    """
    fields = Fields(body)
    prompt = fields.get("prompt", (str, list))
    if prompt is None:
        raise RequestRefused("'prompt' is missing", where="prompt")
    top = fields.get("logprobs", int)
    limit = fields.get("max_tokens", int, LEGACY_MAX_TOKENS)
    params = _params(fields, defaults, limit, top)
    return _request(fields, params, prompts=_prompts(prompt))


def chat_request(body: object, defaults: SamplingParams) -> Completion:
    """Read the body of /v1/chat/completions.

    Raises: RequestRefused naming the field.
    """
    fields = Fields(body)
    messages = fields.get("messages", list)
    if not messages:
        raise RequestRefused("'messages' is missing or empty", where="messages")
    top = fields.get("top_logprobs", int, 0) if fields.get("logprobs", bool, default=False) else None
    limit = fields.get("max_completion_tokens", int) or fields.get("max_tokens", int)
    conversation = tuple(_message(index, message) for index, message in enumerate(messages))
    return _request(fields, _params(fields, defaults, limit, top), conversations=(conversation,))


def _request(
    fields: Fields,
    params: SamplingParams,
    *,
    prompts: tuple[str | tuple[int, ...], ...] = (),
    conversations: tuple[tuple[Message, ...], ...] = (),
) -> Completion:
    for name, what in UNSUPPORTED.items():
        if fields.body.get(name) and not _plain_text(name, fields.body[name]):
            raise RequestRefused(f"'{name}' asks for {what}, which this server does not do", where=name)
    n = fields.get("n", int, 1)
    if not 1 <= n <= MAX_CHOICES:
        raise RequestRefused(f"'n' is {n}, expected 1 to {MAX_CHOICES}", where="n")
    options = fields.get("stream_options", dict, {})
    return Completion(
        prompts=prompts,
        conversations=conversations,
        params=params,
        n=n,
        stream=fields.get("stream", bool, default=False),
        include_usage=bool(options.get("include_usage")),
        echo=bool(prompts) and fields.get("echo", bool, default=False),
    )


def _plain_text(name: str, value: object) -> bool:
    return name == "response_format" and isinstance(value, dict) and value.get("type") == "text"


def _params(fields: Fields, defaults: SamplingParams, limit: int | None, top: int | None) -> SamplingParams:
    number = (int, float)
    stop = fields.get("stop", (str, list), [])
    bias = fields.get("logit_bias", dict, {})
    try:
        logit_bias = {int(token): float(value) for token, value in bias.items()}
    except (TypeError, ValueError) as error:
        raise RequestRefused("'logit_bias' maps token ids to numbers", where="logit_bias") from error
    top_k = fields.get("top_k", int, defaults.top_k)
    return SamplingParams(
        max_tokens=limit,
        temperature=float(fields.get("temperature", number, defaults.temperature)),
        top_k=None if top_k in {0, -1} else top_k,
        top_p=float(fields.get("top_p", number, defaults.top_p)),
        min_p=float(fields.get("min_p", number, defaults.min_p)),
        repetition_penalty=float(fields.get("repetition_penalty", number, defaults.repetition_penalty)),
        presence_penalty=float(fields.get("presence_penalty", number, 0.0)),
        frequency_penalty=float(fields.get("frequency_penalty", number, 0.0)),
        logit_bias=logit_bias,
        seed=fields.get("seed", int),
        logprobs=top,
        stop=(stop,) if isinstance(stop, str) else tuple(str(text) for text in stop),
        ignore_eos=fields.get("ignore_eos", bool, default=False),
    )


def _prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if prompt and all(_is_token(item) for item in prompt):
        return (tuple(prompt),)
    if prompt and all(isinstance(item, str) for item in prompt):
        return tuple(prompt)
    if prompt and all(isinstance(item, list) and all(_is_token(token) for token in item) for item in prompt):
        return tuple(tuple(item) for item in prompt)
    raise RequestRefused("'prompt' is a text, a list of texts, or lists of token ids", where="prompt")


def _is_token(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _message(index: int, message: object) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestRefused(f"'{where}' is no message with a 'role'", where=where)
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"
        ]
        parts = [text for text in texts if isinstance(text, str)]
        if len(parts) != len(content):
            raise RequestRefused(f"'{where}.content' holds parts that are not text", where=where)
        return {**message, "content": "".join(parts)}
    if not isinstance(content, str):
        raise RequestRefused(f"'{where}.content' is not text", where=where)
    return message


def new_id(prefix: str) -> str:
    """Return an id as OpenAI spells them."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Writer:
    """Writes the objects that answer one request."""

    def __init__(self, request: Completion, model: str, tokenizer: Tokenizer) -> None:
        """Fix id and time of the answer."""
        self._request, self._tokenizer = request, tokenizer
        kind = "chat.completion" if request.chat else "text_completion"
        self._head = {
            "id": new_id("chatcmpl" if request.chat else "cmpl"),
            "created": int(time.time()),
            "model": model,
        }
        self._whole, self._part = kind, f"{kind}.chunk" if request.chat else kind

    def answer(self, choices: Sequence[Json], usage: Json) -> Json:
        """Return the object of a request that is not streamed."""
        return {**self._head, "object": self._whole, "choices": list(choices), "usage": usage}

    def choice(self, index: int, text: str, reason: FinishReason, logprobs: Sequence[Logprob] | None) -> Json:
        """Return one finished choice."""
        body: Json = (
            {"message": {"role": "assistant", "content": text}} if self._request.chat else {"text": text}
        )
        return {
            "index": index,
            **body,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": FINISH_REASONS[reason],
        }

    def chunk(
        self, index: int, delta: str | None, reason: FinishReason | None, logprobs: Sequence[Logprob]
    ) -> Json:
        """Return one streamed piece; `delta` None opens the choice of a chat."""
        if self._request.chat:
            opening = {"role": "assistant", "content": ""}
            body: Json = {"delta": opening if delta is None else {"content": delta} if delta else {}}
        else:
            body = {"text": delta or ""}
        choice = {
            "index": index,
            **body,
            "logprobs": self._logprobs(logprobs or None),
            "finish_reason": None if reason is None else FINISH_REASONS[reason],
        }
        usage = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "object": self._part, "choices": [choice], **usage}

    def usage_chunk(self, usage: Json) -> Json:
        """Return the last streamed piece, which only counts."""
        return {**self._head, "object": self._part, "choices": [], "usage": usage}

    def _logprobs(self, logprobs: Sequence[Logprob] | None) -> Json | None:
        if logprobs is None:
            return None
        if self._request.chat:
            return {"content": [self._chat_logprob(one) for one in logprobs], "refusal": None}
        return {
            "tokens": [self._piece(one.token_id) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{self._piece(token): value for token, value in one.top} for one in logprobs],
            "text_offset": [],
        }

    def _chat_logprob(self, one: Logprob) -> Json:
        top = [self._named(token, value) for token, value in one.top]
        return {**self._named(one.token_id, one.logprob), "top_logprobs": top}

    def _named(self, token: int, value: float) -> Json:
        text = self._piece(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    def _piece(self, token: int) -> str:
        return self._tokenizer.decode([token])


def usage_json(usages: Sequence[Usage], n: int) -> Json:
    """Return the counts of a whole request; a prompt that is continued `n` times counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::n])
    output = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages[::n])},
    }
