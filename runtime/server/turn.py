"""One request for text, from its admission to its last byte."""

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tokc.errors import TokcError
from tokc.runtime.request import Request
from tokc.runtime.sequence import Delta, Result, SamplingParams
from tokc.runtime.server.errors import Json, api_error
from tokc.runtime.server.protocol import Completion
from tokc.runtime.server.service import Call, Service
from tokc.runtime.server.supervision import CLIENT_LEFT, ClientLeft, supervised
from tokc.runtime.server.tools import Answer
from tokc.runtime.server.writer import Writer, usage_json

LAST_WORDS_S = 5.0
DONE = b"data: [DONE]\n\n"

_LINE_ENDS = re.compile("[\u0085\u2028\u2029]")


class Turn:
    """Holds the places of its sequences from when it is made until `close`."""

    def __init__(
        self, service: Service, call: Call, request: Completion, prompts: Sequence[Sequence[int]]
    ) -> None:
        """Enter; each prompt is continued `best_of` times.

        Raises: ApiError if there is no place; RequestRefused if the engine cannot run it.
        """
        self.service, self.call, self.request = service, call, request
        call.user, call.stream, call.each = request.user, request.stream, request.best_of
        call.priority = service.priority(call, request.priority)
        self.running = self._requests(prompts)
        self.writer = Writer(request, service.engine.name, service.engine.tokenizer)
        service.admission.check(len(self.running))
        service.spend(call, sum(map(len, prompts)))
        service.admission.enter(len(self.running))

    def close(self) -> None:
        """Give the places back and write down what was used."""
        self.call.usages = [one.sequence.usage for one in self.running]
        self.call.sequences = [one.sequence for one in self.running]
        self.call.finish_reasons = [one.finish_reason or "abort" for one in self.running]
        self.service.admission.leave(len(self.running), self.call.seconds)

    @property
    def timeout_s(self) -> float | None:
        """Return the time that is left."""
        limit = self.service.settings.request_timeout_s
        return None if limit is None else max(limit - self.call.seconds, 0.0)

    @property
    def usage(self) -> Json:
        """Return the counts so far."""
        return usage_json([one.sequence.usage for one in self.running], self.request.best_of)

    def opening(self, index: int) -> str:
        """Return the prompt's text, where the request wants it echoed."""
        if not self.request.echo:
            return ""
        prompt = self.request.prompts[index // self.request.n]
        return prompt if isinstance(prompt, str) else self.service.engine.tokenizer.decode(prompt)

    def answer(self) -> Answer:
        """Return the empty message of one choice."""
        return Answer(self.request.tools, self.service.engine)

    async def whole(self, receive: Receive) -> Response:
        """Return the answer when every choice ended.

        Raises: ClientLeft or an error that a client is told.
        """
        await supervised(self._finish(), receive, self.service.admission, self.timeout_s)
        results = self._chosen([one.result() for one in self.running])
        choices = []
        for index, result in enumerate(results):
            answer = self.answer()
            text, calls = answer.push(result.text, last=True)
            reason = answer.reason(result.finish_reason)
            choices.append(
                self.writer.choice(index, self.opening(index) + text, reason, result.logprobs, calls)
            )
        return JSONResponse(self.writer.answer(choices, self.usage))

    def _requests(self, prompts: Sequence[Sequence[int]]) -> list[Request]:
        request = self.request
        params = request.params
        if request.best_of > request.n and params.logprobs is None:
            params = replace(params, logprobs=0)
        return [
            self.service.engine.request(
                prompt,
                _seeded(params, index),
                cache_salt=self.service.cache_salt(self.call, request.cache_salt),
                priority=self.call.priority,
            )
            for prompt in prompts
            for index in range(request.best_of)
        ]

    async def _finish(self) -> None:
        async with aclosing(self.service.engine.follow_all(self.running)) as deltas:
            async for _ in deltas:
                pass

    def _chosen(self, results: list[Result]) -> list[Result]:
        """Return the `n` results of each prompt, the likeliest by token first where there are more."""
        best_of, n = self.request.best_of, self.request.n
        if best_of == n:
            return results
        groups = [results[first : first + best_of] for first in range(0, len(results), best_of)]
        return [one for group in groups for one in sorted(group, key=_mean_logprob, reverse=True)[:n]]


class EventStream(Response):
    """Sends server-sent events: the choices' pieces as they come, then the counts, then [DONE].

    The status is sent with the first piece, so that what fails before it is an ordinary error.
    """

    media_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        """Stream a turn, and close it."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._turn = turn
        self._started = False
        self._opened: set[int] = set()
        self._answers: dict[int, Answer] = {}

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - as ASGI calls it
        receive: Receive,
        send: Send,
    ) -> None:
        """Send the response."""
        turn = self._turn
        try:
            await supervised(self._pump(send), receive, turn.service.admission, turn.timeout_s)
        except ClientLeft:
            turn.call.status = CLIENT_LEFT
        except TokcError as error:
            if not self._started:
                raise
            turn.call.error = api_error(error).code
            async with asyncio.timeout(LAST_WORDS_S):
                await self._end(send, _event(api_error(error).body))
        finally:
            turn.close()

    async def _pump(self, send: Send) -> None:
        turn, writer = self._turn, self._turn.writer
        async with aclosing(turn.service.engine.follow_all(turn.running)) as deltas:
            async for news in deltas:
                pieces = [piece for index, delta in news for piece in self._pieces(index, delta)]
                if pieces:
                    await self._send(send, b"".join(map(_event, pieces)))
        await self._end(send, _event(writer.usage_chunk(turn.usage)) if turn.request.include_usage else b"")

    def _pieces(self, index: int, delta: Delta) -> Iterator[Json]:
        turn, writer = self._turn, self._turn.writer
        if index not in self._opened:
            self._opened.add(index)
            if turn.request.chat or turn.request.echo:
                yield writer.opening(index, turn.opening(index))
        answer = self._answers.setdefault(index, turn.answer())
        text, calls = answer.push(delta.text, last=delta.finish_reason is not None)
        reason = None if delta.finish_reason is None else answer.reason(delta.finish_reason)
        if text or calls or delta.logprobs or reason:
            yield writer.chunk(index, text, reason, delta.logprobs, calls)

    async def _send(self, send: Send, content: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            start: Message = {
                "type": "http.response.start", "status": self.status_code, "headers": self.raw_headers
            }  # fmt: skip
            await send(start)
        await send({"type": "http.response.body", "body": content, "more_body": more})

    async def _end(self, send: Send, content: bytes) -> None:
        await self._send(send, content + DONE, more=False)


def _event(body: Json) -> bytes:
    text = json.dumps(body, ensure_ascii=False)
    if not text.isascii():
        # Clients that split lines as Unicode does would cut an event at these.
        text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return f"data: {text}\n\n".encode()


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    """Return the parameters of choice `index`: a seed of its own, if one was given."""
    return params if params.seed is None or index == 0 else replace(params, seed=params.seed + index)


def _mean_logprob(result: Result) -> float:
    logprobs = result.logprobs or ()
    return sum(one.logprob for one in logprobs) / max(len(logprobs), 1)
