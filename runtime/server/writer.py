"""OpenAI's answers: the objects and stream chunks that go back."""

import secrets
import time
from collections.abc import Sequence
from itertools import accumulate

from tokc.runtime.sequence import Logprob, Usage
from tokc.runtime.server.errors import Json
from tokc.runtime.server.protocol import Completion
from tokc.runtime.tokenizer import Tokenizer


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
        self._offsets: dict[int, int] = {}

    def answer(self, choices: Sequence[Json], usage: Json) -> Json:
        """Return the object of a request that is not streamed."""
        return {**self._head, "object": self._whole, "choices": list(choices), "usage": usage}

    def choice(
        self,
        index: int,
        text: str,
        reason: str,
        logprobs: Sequence[Logprob] | None,
        calls: Sequence[Json] = (),
    ) -> Json:
        """Return one finished choice."""
        message: Json = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = [
                {name: value for name, value in call.items() if name != "index"} for call in calls
            ]
        body: Json = {"message": message} if self._request.chat else {"text": text}
        return {
            "index": index,
            **body,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": reason,
        }

    def opening(self, index: int, text: str) -> Json:
        """Return the chunk that opens a choice: a chat's role, or the prompt that is echoed."""
        body: Json = (
            {"delta": {"role": "assistant", "content": text}} if self._request.chat else {"text": text}
        )
        return self._chunk({"index": index, **body, "logprobs": None, "finish_reason": None})

    def chunk(
        self,
        index: int,
        text: str,
        reason: str | None,
        logprobs: Sequence[Logprob],
        calls: Sequence[Json] = (),
    ) -> Json:
        """Return one streamed piece."""
        delta: Json = {"content": text} if text or logprobs else {}
        if calls:
            delta["tool_calls"] = list(calls)
        body: Json = {"delta": delta} if self._request.chat else {"text": text}
        return self._chunk(
            {
                "index": index,
                **body,
                "logprobs": self._logprobs(index, logprobs or None),
                "finish_reason": reason,
            }
        )

    def usage_chunk(self, usage: Json) -> Json:
        """Return the last streamed piece, which only counts."""
        return {**self._head, "object": self._part, "choices": [], "usage": usage}

    def _chunk(self, choice: Json) -> Json:
        usage = {"usage": None} if self._request.include_usage else {}
        return {**self._head, "object": self._part, "choices": [choice], **usage}

    def _logprobs(self, index: int, logprobs: Sequence[Logprob] | None) -> Json | None:
        if logprobs is None or not self._request.logprobs:
            return None
        if self._request.chat:
            return {"content": [self._chat_logprob(one) for one in logprobs], "refusal": None}
        tokens = [self._piece(one.token_id) for one in logprobs]
        offsets = list(accumulate(map(len, tokens), initial=self._offsets.get(index, 0)))
        self._offsets[index] = offsets.pop()
        wanted = self._request.params.logprobs
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [self._alternatives(one) for one in logprobs] if wanted else None,
            "text_offset": offsets,
        }

    def _alternatives(self, one: Logprob) -> dict[str, float]:
        """Return the likeliest tokens and, where it is not among them, the chosen one."""
        return {self._piece(token): value for token, value in (*one.top, (one.token_id, one.logprob))}

    def _chat_logprob(self, one: Logprob) -> Json:
        top = [self._named(token, value) for token, value in one.top]
        return {**self._named(one.token_id, one.logprob), "top_logprobs": top}

    def _named(self, token: int, value: float) -> Json:
        content = self._tokenizer.token_bytes(token)
        return {"token": content.decode(errors="replace"), "logprob": value, "bytes": list(content)}

    def _piece(self, token: int) -> str:
        """Return a token's text; a part of a character is spelled out, as OpenAI does."""
        content = self._tokenizer.token_bytes(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def usage_json(usages: Sequence[Usage], each: int) -> Json:
    """Return the counts of a whole request; a prompt that is continued `each` times counts once."""
    prompt = sum(usage.prompt_tokens for usage in usages[::each])
    output = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages[::each])},
    }
