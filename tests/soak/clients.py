"""Clients of every manner: patient, hasty, slow, greedy, broken."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import httpx

Body = dict[str, Any]

PATH, CHAT = "/v1/completions", "/v1/chat/completions"
DECLARED = {200, 400, 408, 413, 415, 429, 503, 504}
BEGINNINGS = (
    "",
    "The same beginning of many a prompt, ",
    "Another one, rather longer than the first of them: ",
)
MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"", 400),
    (b"{", 400),
    (b"\xff", 400),
    (b"[" * 5000, 400),
    (b'{"prompt": "\\udc00"}', 400),
    (b'{"prompt": "a", "temperature": NaN}', 400),
    (b'{"prompt": "a", "temperature": 1e400}', 400),
    (b'{"prompt": "a", "n": 10000000000000000000000}', 400),
    (b'{"prompt": {"a": 1}}', 400),
    (b'{"prompt": "a", "unheard": 1}', 400),
    (b'{"prompt": [1, 2, 99999]}', 400),
    (b'{"prompt": "' + b"a" * (300 << 10) + b'"}', 413),
)


class Answered(NamedTuple):
    """A request that can be made again, and its text."""

    path: str
    body: Body
    text: str


class Clients:
    """Makes requests until the time is over, and keeps what to check."""

    def __init__(self, url: str, http: httpx.AsyncClient, *, seed: int, keep: int) -> None:
        """Keep about `keep` answers for a second look."""
        self._http, self._keep = http, keep
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._random = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.faults: list[str] = []
        self.answered: list[Answered] = []
        self._seen = 0

    async def work(self, until_s: float) -> None:
        """Be one client."""
        manners: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self.whole, 30),
            (self.stream, 30),
            (self.hasty, 15),
            (self.impatient, 8),
            (self.oversized, 6),
            (self.malformed, 8),
            (self.slow, 4),
            (self.deaf, 2),
            (self.silent, 2),
        )
        kinds, weights = zip(*manners, strict=True)
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            manner = self._random.choices(kinds, weights)[0]
            try:
                await manner()
            except (httpx.HTTPError, OSError) as error:
                self.faults.append(f"{manner.__name__}: {error!r}")

    def request(self) -> tuple[str, Body]:
        """Return a request whose answer depends on nothing but itself."""
        rng = self._random
        text = rng.choice(BEGINNINGS) + "".join(rng.choices("abc dé😀", k=rng.randrange(1, 30)))
        body: Body = {"max_tokens": rng.randrange(1, 48), "temperature": rng.choice([0, 0.8])}
        body["seed"] = rng.randrange(1000)
        if rng.random() < 0.2:
            body["n"] = 2
        if rng.random() < 0.2:
            body["stop"] = rng.choice(["e", "ab", "\n"])
        if rng.random() < 0.1:
            body["cache_salt"] = rng.choice(["x", "y"])
        if rng.random() < 0.1:
            body["priority"] = rng.randrange(-2, 3)
        if rng.random() < 0.4:
            return CHAT, {**body, "messages": [{"role": "user", "content": text}]}
        return PATH, {**body, "prompt": text}

    async def whole(self) -> None:
        """Wait for an answer."""
        path, body = self.request()
        answer = await self._http.post(path, json=body)
        self._count("whole", answer.status_code)
        if answer.status_code == 200:
            self._remember(Answered(path, body, text_of(answer.json())))

    async def stream(self, pause_s: float = 0.0) -> None:
        """Read a stream to its end."""
        path, body = self.request()
        pieces: Counter[int] = Counter()
        texts: dict[int, str] = {}
        async with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
            self._count("stream", answer.status_code)
            if answer.status_code != 200:
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self._count("stream", f"error {event['error']['code']}")
                        return
                    choice = event["choices"][0]
                    piece = choice["delta"].get("content") or "" if path == CHAT else choice["text"]
                    texts[choice["index"]] = texts.get(choice["index"], "") + piece
                    pieces[choice["index"]] += 1
                    await asyncio.sleep(pause_s)
        self._remember(Answered(path, body, json.dumps([texts[index] for index in sorted(texts)])))

    async def hasty(self) -> None:
        """Leave in the middle of a stream."""
        path, body = self.request()
        leave_after = self._random.randrange(0, 12)
        async with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
            self._count("hasty", answer.status_code)
            async for _ in answer.aiter_lines():
                leave_after -= 1
                if leave_after < 0:
                    return

    async def impatient(self) -> None:
        """Leave before an answer comes."""
        path, body = self.request()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.random() * 0.3):
                answer = await self._http.post(path, json=body)
                self._count("impatient", answer.status_code)

    async def oversized(self) -> None:
        """Send more than the context holds."""
        answer = await self._http.post(PATH, json={"prompt": "x" * self._random.randrange(200, 5000)})
        self._count("oversized", answer.status_code, {400, 503})

    async def malformed(self) -> None:
        """Send what is no request."""
        content, status = self._random.choice(MALFORMED)
        headers = {"Content-Type": "application/json"}
        answer = await self._http.post(self._random.choice([PATH, CHAT]), content=content, headers=headers)
        self._count("malformed", answer.status_code, {status, 400})

    async def slow(self) -> None:
        """Read a stream with pauses."""
        await self.stream(pause_s=0.05)

    async def deaf(self) -> None:
        """Ask for a long stream and read nothing of it."""
        body = {
            "prompt": "deaf",
            "max_tokens": 150,
            "n": 4,
            "logprobs": 20,
            "stream": True,
            "ignore_eos": True,
        }
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1)
        content = json.dumps(body).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await asyncio.sleep(self._random.random() * 4)
        self._count("deaf", "left")
        writer.transport.abort()
        del reader

    async def silent(self) -> None:
        """Connect, send a part of a request, and wait to be thrown out."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        part = self._random.choice([b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: "])
        writer.write(part)
        with suppress(OSError):
            async with asyncio.timeout(10):
                await reader.read()
        self._count("silent", "thrown out")
        writer.close()

    def _count(self, manner: str, status: int | str, allowed: set[int] | None = None) -> None:
        self.statuses[f"{manner} {status}"] += 1
        if isinstance(status, int) and status not in (DECLARED if allowed is None else allowed | {429, 503}):
            self.faults.append(f"{manner}: unexpected status {status}")

    def _remember(self, answered: Answered) -> None:
        """Keep a fair sample (Vitter 1985, algorithm R)."""
        self._seen += 1
        if len(self.answered) < self._keep:
            self.answered.append(answered)
        elif (place := self._random.randrange(self._seen)) < self._keep:
            self.answered[place] = answered


def text_of(body: Body) -> str:
    """Return the texts of an answer that was not streamed."""
    texts = [one["message"]["content"] if "message" in one else one["text"] for one in body["choices"]]
    return json.dumps(texts)
