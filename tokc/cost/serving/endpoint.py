"""Where requests are sent: an engine in this process, or any server that speaks OpenAI's completions."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tokc.cost.serving.workload import Ask
from tokc.errors import TokcError
from tokc.runtime.engine import Engine
from tokc.runtime.sequence import SamplingParams

if TYPE_CHECKING:
    import httpx

CONNECT_S = 10.0
DATA, DONE = "data: ", "[DONE]"


class Heard(NamedTuple):
    """What a client heard of one answer: when each piece came, and the tokens that were counted."""

    times_s: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class State(NamedTuple):
    """What an endpoint holds at a moment; `pages` is the share of the cache's pages in use."""

    running: int
    waiting: int
    pages: float


class Busy(NamedTuple):
    """Seconds that steps took, for prompts and for answers."""

    prefill_s: float
    decode_s: float


class Endpoint(Protocol):
    """Answers requests."""

    async def answer(self, ask: Ask, salt: str) -> Heard:
        """Send a request and hear its answer out; only those of one `salt` share cached beginnings.

        Raises: TokcError if it was refused or broke off.
        """

    def state(self) -> State | None:
        """Return what it holds now, None where it cannot be seen."""

    def busy(self) -> Busy | None:
        """Return how long its steps took up to now, None where it cannot be seen."""


class EngineEndpoint:
    """An engine in this process."""

    def __init__(self, engine: Engine) -> None:
        """Let the engine's own thread drive it."""
        self.engine = engine

    async def answer(self, ask: Ask, salt: str) -> Heard:
        """Send a request and hear its answer out."""
        params = SamplingParams(max_tokens=ask.output_tokens, ignore_eos=True)
        request = self.engine.request(ask.prompt, params, cache_salt=salt.encode())
        async with aclosing(self.engine.follow(request)) as deltas:
            times = [time.perf_counter() async for _ in deltas]
        usage = request.sequence.usage
        return Heard(tuple(times), usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    def state(self) -> State:
        """Return what the engine holds now."""
        gauges = self.engine.gauges
        return State(gauges.running, gauges.waiting, gauges.pages_used / gauges.pages_total)

    def busy(self) -> Busy:
        """Return how long the engine's steps took."""
        return Busy(self.engine.counters.prefill_s, self.engine.counters.decode_s)


class HttpEndpoint:
    """A server's /v1/completions, streamed."""

    def __init__(self, client: "httpx.AsyncClient", model: str) -> None:
        """Ask for a model by name; the client has the base URL, up to and including /v1."""
        self._client, self.model = client, model

    async def answer(self, ask: Ask, salt: str) -> Heard:  # noqa: ARG002 - only our own server takes a salt
        """Send a request and hear its answer out; a piece may hold several tokens."""
        import httpx

        body = {
            "model": self.model,
            "prompt": ask.prompt,
            "max_tokens": ask.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        times: list[float] = []
        usage: dict[str, object] = {}
        try:
            async with self._client.stream("POST", "completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    text = (await response.aread()).decode(errors="replace")[:200]
                    raise TokcError(f"the server answered {response.status_code}: {text}")
                async for line in response.aiter_lines():
                    if line.startswith(DATA) and line != DATA + DONE:
                        chunk = json.loads(line.removeprefix(DATA))
                        usage = chunk.get("usage") or usage
                        if any(choice.get("text") for choice in chunk.get("choices", ())):
                            times.append(time.perf_counter())
        except (httpx.HTTPError, ValueError) as error:
            raise TokcError(f"the server broke off: {str(error) or type(error).__name__}") from error
        if not usage or not times:
            raise TokcError(
                "the server counted no tokens", hint="it must support stream_options.include_usage"
            )
        return _heard(times, usage)

    def state(self) -> None:
        """Return nothing: a server's inside is not seen."""

    def busy(self) -> None:
        """Return nothing: a server's inside is not seen."""


def _heard(times: list[float], usage: dict[str, object]) -> Heard:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0]
    prompt, output, found = (int(count) if isinstance(count, int) else 0 for count in counts)
    return Heard(tuple(times), prompt, output, found)


@asynccontextmanager
async def http_endpoint(url: str, model: str | None, key: str | None) -> AsyncIterator[HttpEndpoint]:
    """Yield a server's endpoint; `model` None takes the first that it lists.

    Raises: TokcError if it is not reached or lists no model.
    """
    import httpx

    base = url.rstrip("/")
    base = base if base.endswith("/v1") else f"{base}/v1"
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=f"{base}/", headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:
        yield HttpEndpoint(client, model or await _first_model(client, base))


async def _first_model(client: "httpx.AsyncClient", base: str) -> str:
    import httpx

    try:
        response = await client.get("models")
        response.raise_for_status()
        models = [str(model["id"]) for model in response.json()["data"]]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise TokcError(
            f"cannot list the models of '{base}': {error}", hint="give its URL up to and including /v1"
        ) from error
    if not models:
        raise TokcError(f"'{base}' lists no model", hint="name one with --model")
    return models[0]
