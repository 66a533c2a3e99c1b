"""The engine: text in, text out, for many callers at once, synchronous or asynchronous.

Whoever waits for an answer drives the steps, until `start` hands that to a thread of the engine's own.
"""

import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.chat import ChatTemplate, Message
from tokc.runtime.core import Core, Event
from tokc.runtime.counters import Counters, Gauges
from tokc.runtime.executors.base import Executor
from tokc.runtime.executors.table import executor_for
from tokc.runtime.generation_config import GenerationConfig
from tokc.runtime.request import Request
from tokc.runtime.sequence import Delta, Result, SamplingOptions, SamplingParams, Sequence
from tokc.runtime.tokenizer import Tokenizer

Prompt = str | Items[int]

SEED_BYTES = 8


class Engine:
    """Serves one model."""

    def __init__(  # noqa: PLR0913 - what a model consists of
        self,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        name: str = "model",
        eos_ids: Items[int] = (),
        chat_template: ChatTemplate | None = None,
        defaults: SamplingParams | None = None,
        core: Core | None = None,
    ) -> None:
        """Serve the model of `executor`; `defaults` are what its makers recommend, used by the server."""
        self.name = name
        self.executor = executor
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.defaults = defaults or SamplingParams()
        self.eos_ids = frozenset(eos_ids)
        self._core = core or Core(executor)
        self._requests: dict[Sequence, Request] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._step_lock = threading.Lock()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failure: BaseException | None = None

    @classmethod
    def open(
        cls,
        path: str | Path | Artifact,
        *,
        threads: int | None = None,
        kv_bytes: int | None = None,
        verify: bool = True,
    ) -> Self:
        """Load the artifact at `path`, or one that was begun, and return when it was found to be whole.

        `threads` and `kv_bytes` None leave the choice to the executor.
        Raises: ArtifactRefused.
        """
        artifact = (
            path if isinstance(path, Artifact) else Artifact.open(path, verify=False).begin(verify=verify)
        )
        try:
            engine = cls._assemble(artifact, threads, kv_bytes)
        except Exception:
            artifact.finish()  # a damaged file explains it better
            raise
        try:
            artifact.finish()
        except ArtifactRefused:
            engine.close()
            raise
        return engine

    @classmethod
    def _assemble(cls, artifact: Artifact, threads: int | None, kv_bytes: int | None) -> Self:
        tokenizer = Tokenizer.of(artifact)
        template = artifact.read_text("chat_template.jinja")
        model = artifact.manifest.model
        generation = GenerationConfig.parse(artifact.read_text("generation_config.json"))
        return cls(
            executor_for(artifact, threads=threads, kv_bytes=kv_bytes),
            tokenizer,
            name=artifact.manifest.name,
            eos_ids=[*model.eos_token_ids, *generation.eos_token_ids],
            chat_template=None if template is None else ChatTemplate(template, model.special_tokens),
            defaults=generation.sampling,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counters(self) -> Counters:
        """Return the totals since the engine was opened."""
        return self._core.counters

    @property
    def gauges(self) -> Gauges:
        """Return the state of this moment, requests not yet seen by a step among the waiting."""
        gauges = self._core.gauges
        return gauges._replace(waiting=gauges.waiting + len(self._inbox))

    @property
    def context_length(self) -> int:
        """Return the most tokens, prompt and answer together, that one request can have."""
        return self._core.longest

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Result:
        """Return the continuation of `prompt`; `options` replace fields of `params`.

        Raises: RequestRefused if the prompt is empty or longer than the context.
        """
        return self.generate_all([prompt], params, **options)[0]

    def generate_all(
        self, prompts: Items[Prompt], params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> list[Result]:
        """Return the continuation of each prompt; they run together."""
        requests = [self.request(prompt, _merged(params, options)) for prompt in prompts]
        try:
            for request in requests:
                self._submit(request)
            for request in requests:
                while not request.done:
                    request.deltas.clear()
                    self._advance(request)
        finally:
            self._abort(requests)
        return [request.result() for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Iterator[Delta]:
        """Yield the continuation token by token; closing the iterator aborts it."""
        return self._stream(self.request(prompt, _merged(params, options)))

    def chat(
        self,
        messages: Items[Message],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """Return the answer to a conversation."""
        return self.generate(self.chat_prompt(messages), params, **options)

    def stream_chat(
        self,
        messages: Items[Message],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Delta]:
        """Yield the answer to a conversation token by token."""
        return self.stream(self.chat_prompt(messages), params, **options)

    async def agenerate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Result:
        """Return the continuation of `prompt`; cancelling the task aborts it."""
        request = self.request(prompt, _merged(params, options))
        async for _ in self.follow(request):
            pass
        return request.result()

    def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> AsyncIterator[Delta]:
        """Yield the continuation token by token; cancelling the task or closing the iterator aborts it."""
        return self.follow(self.request(prompt, _merged(params, options)))

    async def achat(
        self,
        messages: Items[Message],
        params: SamplingParams | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """Return the answer to a conversation; cancelling the task aborts it."""
        return await self.agenerate(self.chat_prompt(messages), params, **options)

    def chat_prompt(self, messages: Items[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins.

        Raises: RequestRefused if the model has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise RequestRefused("the model has no chat template", hint="use a plain prompt")
        if not messages:
            raise RequestRefused("the conversation is empty", where="messages")
        text = self.chat_template.render(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    async def follow(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Run a request and yield its deltas; leaving early aborts it."""
        import asyncio

        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop was closed while the request ran
                loop.call_soon_threadsafe(ready.set)

        request.notify = notify
        self.start()
        try:
            self._submit(request)
            while not (request.done and not request.deltas):
                if not request.deltas:
                    await ready.wait()
                    ready.clear()
                while request.deltas:
                    yield request.deltas.popleft()
            request.check()
        finally:
            self._abort([request])

    def prepare(self) -> None:
        """Do now what a first chat would have to wait for; a server does so before it serves.

        Raises: ArtifactRefused if the chat template is wrong.
        """
        self.tokenizer.prepare()
        if self.chat_template is not None:
            _ = self.chat_template.compiled

    def start(self) -> None:
        """Let a thread of the engine's own drive the steps from now on."""
        with self._news:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._serve, name="tokc-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Abort what runs, stop the thread and close the executor; calling it again is allowed."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._step_lock:
            self._fail(RequestRefused("the engine was closed"))
            self.executor.close()

    def step(self) -> int:
        """Do one step for all requests and return how many tokens it made."""
        with self._step_lock:
            return self._step()

    def _step(self) -> int:
        while self._inbox:
            self._inbox.popleft()()
        try:
            events = self._core.step()
        except BaseException as error:
            self._fail(error)
            raise
        for event in events:
            self._deliver(event)
        return len(events)

    def _deliver(self, event: Event) -> None:
        request = self._requests.get(event.sequence)
        if request is None:
            return
        request.receive(event)
        if request.done:
            del self._requests[event.sequence]
            self._core.finish(event.sequence)

    def request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """Check a request, for `follow`.

        Raises: RequestRefused if the prompt is empty or longer than the context.
        """
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise RequestRefused("the prompt is empty", where="prompt")
        room = self.context_length - len(tokens)
        if room < 1:
            raise RequestRefused(
                f"the prompt has {len(tokens)} tokens; the context of {self.context_length} leaves room for"
                f" at most {self.context_length - 1}",
                where="prompt",
                hint="shorten it, or build with a larger --context",
            )
        vocab = self.executor.vocab_size
        wrong = next((token for token in (*tokens, *params.logit_bias) if not 0 <= token < vocab), None)
        if wrong is not None:
            raise RequestRefused(
                f"token {wrong} is not in the vocabulary of {vocab}", where="prompt or logit_bias"
            )
        seed = int.from_bytes(os.urandom(SEED_BYTES)) >> 1 if params.seed is None else params.seed
        sequence = Sequence(tokens, params, seed=seed, last_output=min(params.max_tokens or room, room))
        if not params.ignore_eos:
            sequence.eos_ids = self.eos_ids
        return Request(sequence, self.tokenizer)

    def _submit(self, request: Request) -> None:
        def enter() -> None:
            self._requests[request.sequence] = request
            self._core.add(request.sequence)

        self._post(enter)

    def _abort(self, requests: Items[Request]) -> None:
        """Give back the pages of requests that did not end; a step that is running is not waited for."""
        with self._news:
            self._inbox.extend(partial(self._drop, request) for request in requests if not request.done)
            self._news.notify_all()
        if self._thread is None and self._step_lock.acquire(blocking=False):
            try:
                while self._inbox:
                    self._inbox.popleft()()
            finally:
                self._step_lock.release()

    def _drop(self, request: Request) -> None:
        if self._requests.pop(request.sequence, None) is not None:
            self._core.finish(request.sequence)
            request.abort()

    def _post(self, action: Callable[[], None]) -> None:
        with self._news:
            if self._closing:
                raise RequestRefused("the engine is closed")
            if self._failure is not None:
                raise RequestRefused(f"the engine failed: {self._failure}") from self._failure
            self._inbox.append(action)
            if self._thread is not None:
                self._news.notify_all()

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._submit(request)
        try:
            while True:
                while request.deltas:
                    yield request.deltas.popleft()
                if request.done:
                    break
                self._advance(request)
            request.check()
        finally:
            self._abort([request])

    def _advance(self, request: Request) -> None:
        """Wait for news of a request: make a step, unless the engine's thread does."""
        if self._thread is not None:
            with self._news:
                self._news.wait_for(lambda: request.done or request.deltas or self._closing, timeout=1)
            return
        with self._step_lock:
            if not request.done and not request.deltas:
                self._step()

    def _serve(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closing or self._inbox or not self._core.idle)
                if self._closing:
                    return
            try:
                self.step()
            except BaseException as error:
                self._failure = error
                return
            with self._news:
                self._news.notify_all()

    def _fail(self, error: BaseException) -> None:
        """End every request with an error."""
        while self._inbox:
            self._inbox.popleft()()
        for sequence, request in list(self._requests.items()):
            self._core.finish(sequence)
            request.fail(error)
        self._requests.clear()


def _merged(params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    return replace(params or SamplingParams(), **options)
