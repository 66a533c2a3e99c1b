"""The engine: text in, text out, for many callers at once, synchronous or asynchronous."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from tokc.errors import ArtifactRefused, RequestRefused
from tokc.runtime.artifact import Artifact
from tokc.runtime.chat import ChatTemplate, Message
from tokc.runtime.core import Core
from tokc.runtime.counters import Counters, Gauges
from tokc.runtime.engine_loop import EngineLoop
from tokc.runtime.executors.base import Executor
from tokc.runtime.executors.table import executor_for
from tokc.runtime.generation_config import GenerationConfig
from tokc.runtime.grammar import Grammars
from tokc.runtime.request import Request
from tokc.runtime.sequence import Delta, Result, SamplingOptions, SamplingParams, Sequence
from tokc.runtime.speculation.config import SpeculativeConfig
from tokc.runtime.speculation.speculation import Speculation
from tokc.runtime.speculation.table import speculation_of
from tokc.runtime.tokenizer import Tokenizer
from tokc.runtime.tool_calls import HERMES, Tool, ToolFormat, format_of, spelled_out

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
        self.grammars = Grammars(tokenizer, executor.vocab_size, self.eos_ids)
        self._core = core or Core(executor)
        self._loop = EngineLoop(self._core)

    @classmethod
    def open(
        cls,
        path: str | Path | Artifact,
        *,
        threads: int | None = None,
        kv_bytes: int | None = None,
        verify: bool = True,
        speculative: SpeculativeConfig | None = None,
    ) -> Self:
        """Load the artifact at `path`, or one that was begun, and return when it was found to be whole.

        `threads` and `kv_bytes` None leave the choice to the executor; `speculative` says how to
        draft tokens.
        Raises: ArtifactRefused.
        """
        artifact = (
            path if isinstance(path, Artifact) else Artifact.open(path, verify=False).begin(verify=verify)
        )
        try:
            engine = cls._assemble(artifact, threads, kv_bytes, speculative)
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
    def _assemble(
        cls,
        artifact: Artifact,
        threads: int | None,
        kv_bytes: int | None,
        speculative: SpeculativeConfig | None,
    ) -> Self:
        tokenizer = Tokenizer.of(artifact)
        template = artifact.read_text("chat_template.jinja")
        model = artifact.manifest.model
        generation = GenerationConfig.parse(artifact.read_text("generation_config.json"))
        executor = executor_for(artifact, threads=threads, kv_bytes=kv_bytes)
        try:
            speculation = speculation_of(speculative, artifact, executor, threads)
        except Exception:
            executor.close()
            raise
        return cls(
            executor,
            tokenizer,
            core=Core(executor, speculation=speculation),
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
        return gauges._replace(waiting=gauges.waiting + self._loop.unseen)

    @property
    def speculation(self) -> Speculation | None:
        """Return what drafts tokens, None if nothing does."""
        return self._core.speculation

    @property
    def context_length(self) -> int:
        """Return the most tokens, prompt and answer together, that one request can have."""
        return self._core.longest

    @property
    def failure(self) -> BaseException | None:
        """Return what ended the engine's thread; every request is refused from then on."""
        return self._loop.failure

    def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[SamplingOptions]
    ) -> Result:
        """Return the continuation of `prompt`; `options` replace fields of `params`.

        Raises: RequestRefused if the prompt is empty or longer than the context.
        """
        return self.generate_all([prompt], params, **options)[0]

    def generate_all(
        self,
        prompts: Items[Prompt],
        params: SamplingParams | None = None,
        *,
        cache_salt: bytes = b"",
        **options: Unpack[SamplingOptions],
    ) -> list[Result]:
        """Return the continuation of each prompt; they run together, and share a cache by `cache_salt`."""
        merged = _merged(params, options)
        requests = [self.request(prompt, merged, cache_salt=cache_salt) for prompt in prompts]
        try:
            for request in requests:
                self._loop.submit(request)
            for request in requests:
                while not request.done:
                    request.deltas.clear()
                    self._loop.advance(request)
        finally:
            self._loop.abort(requests)
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

    def chat_prompt(
        self,
        messages: Items[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Items[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins; the template gets `variables`.

        `tools` may be called; a template that knows none gets them written out.

        Raises: RequestRefused if the model has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise RequestRefused("the model has no chat template", hint="use a plain prompt")
        if not messages:
            raise RequestRefused("the conversation is empty", where="messages")
        known = self.chat_template.knows_tools
        text = self.chat_template.render(
            messages if known else spelled_out(messages, tools),
            tools=[tool.for_template for tool in tools] if known and tools else None,
            add_generation_prompt=add_generation_prompt,
            **(variables or {}),
        )
        return self.tokenizer.encode(text, add_special_tokens=False)

    @property
    def tool_format(self) -> ToolFormat:
        """Return how the model writes a call.

        Raises: RequestRefused if its chat template has a form that is not known.
        """
        template = "" if self.chat_template is None else self.chat_template.text
        return format_of(template) or HERMES

    async def follow(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Run a request and yield its deltas; leaving early aborts it."""
        async with aclosing(self.follow_all([request])) as deltas:
            async for news in deltas:
                for _, delta in news:
                    yield delta

    async def follow_all(self, requests: Items[Request]) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        """Run requests together and yield all news at once, as (index, delta); leaving early aborts all.

        Raises: EngineStopped if one of them fails.
        """
        import asyncio

        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the event loop was closed while the request ran
                loop.call_soon_threadsafe(ready.set)

        self.start()
        try:
            for request in requests:
                request.notify = notify
                self._loop.submit(request)
            going = list(enumerate(requests))
            while going:
                ready.clear()
                still, news = [], []
                for index, request in going:
                    done = request.done  # read first: once it is true, every delta is there
                    while request.deltas:
                        news.append((index, request.deltas.popleft()))
                    if not (done and request.error is None):
                        still.append((index, request))
                if news:
                    yield news
                for _, request in still:
                    request.check()
                going = still
                if going:
                    await ready.wait()
        finally:
            self._loop.abort(requests)

    def prepare(self) -> None:
        """Do now what a first chat would have to wait for; a server does so before it serves.

        Raises: ArtifactRefused if the chat template is wrong.
        """
        self.tokenizer.prepare()
        if self.chat_template is not None:
            _ = self.chat_template.compiled

    def start(self) -> None:
        """Let a thread of the engine's own drive the steps from now on."""
        self._loop.start()

    def close(self) -> None:
        """Abort what runs, stop the thread and close the executor; calling it again is allowed."""
        self._loop.close()
        if self.speculation is not None:
            self.speculation.close()
        self.executor.close()

    def step(self) -> int:
        """Do one step for all requests and return how many tokens it made."""
        return self._loop.step()

    def request(
        self, prompt: Prompt, params: SamplingParams, *, cache_salt: bytes = b"", priority: int = 0
    ) -> Request:
        """Check a request, for `follow`.

        It shares cached beginnings with requests of the same `cache_salt` only. A lower `priority` is served
        earlier; waiting makes up for it.
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
        for where, ids in (
            ("prompt", tokens),
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            wrong = next((token for token in ids if not 0 <= token < vocab), None)
            if wrong is not None:
                raise RequestRefused(f"token {wrong} is not in the vocabulary of {vocab}", where=where)
        seed = int.from_bytes(os.urandom(SEED_BYTES)) >> 1 if params.seed is None else params.seed
        sequence = Sequence(tokens, params, seed=seed, last_output=min(params.max_tokens or room, room))
        sequence.eos_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else self.eos_ids
        )
        sequence.cache_salt, sequence.priority = cache_salt, priority
        if params.constraint is not None:
            sequence.matcher = self.grammars.matcher(params.constraint)
        return Request(sequence, self.tokenizer)

    def _stream(self, request: Request) -> Iterator[Delta]:
        self._loop.submit(request)
        try:
            while True:
                while request.deltas:
                    yield request.deltas.popleft()
                if request.done:
                    break
                self._loop.advance(request)
            request.check()
        finally:
            self._loop.abort([request])


def _merged(params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    return replace(params or SamplingParams(), **options)
