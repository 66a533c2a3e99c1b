"""What the endpoints share: the engine, the limits, who may call, and what is written down."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest

from tokc.runtime.engine import Engine
from tokc.runtime.sequence import Sequence, Usage
from tokc.runtime.server.admission import Admission
from tokc.runtime.server.budgets import Budget
from tokc.runtime.server.errors import ApiError, invalid
from tokc.runtime.server.keys import Key, KeyRing
from tokc.runtime.server.ledger import JsonLines
from tokc.runtime.server.settings import Settings

if TYPE_CHECKING:
    from tokc.runtime.server.tracing import Tracing

NOT_FOUND = 404
SALT_BYTES = 16


@dataclass
class Call:
    """One HTTP request, as the logs know it; `each` is how often every prompt was continued."""

    id: str
    method: str
    path: str
    client: str | None
    started_s: float = field(default_factory=time.perf_counter)
    status: int | None = None
    key: Key | None = None
    user: str | None = None
    stream: bool = False
    priority: int = 0
    each: int = 1
    usages: list[Usage] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Return the time since it came."""
        return time.perf_counter() - self.started_s

    @property
    def usage(self) -> Usage:
        """Return the counts of all its sequences; a prompt counts once."""
        prompts = self.usages[:: self.each]
        return Usage(
            sum(usage.prompt_tokens for usage in prompts),
            sum(usage.completion_tokens for usage in self.usages),
            sum(usage.cached_tokens for usage in prompts),
        )


class Service:
    """Serves one engine."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings | None = None,
        *,
        keys: Iterable[Key] | None = None,
        usage_log: JsonLines | None = None,
        audit_log: JsonLines | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """Let in what `settings` allow and, with `keys`, nobody without one."""
        self.engine = engine
        self.settings = settings or Settings()
        self.admission = Admission(places=engine.executor.max_seqs, max_queue=self.settings.max_queue)
        self.tracing = tracing
        self.responses: Counter[int] = Counter()
        listed = list(keys or ())
        self._ring = None if keys is None else KeyRing(listed)
        self._budgets = {key.name: Budget(key) for key in reversed(listed)}
        self._usage_log, self._audit_log = usage_log, audit_log

    @property
    def status(self) -> str:
        """Return `ok`, `stopping` or `failed`."""
        if self.engine.failure is not None:
            return "failed"
        return "stopping" if self.admission.draining else "ok"

    @property
    def keyed(self) -> bool:
        """Say whether a key is asked for."""
        return self._ring is not None

    async def authorize(self, http: HttpRequest, call: Call) -> None:
        """Find out whose call it is and count it.

        Raises: ApiError with 401 without a right key, with 429 if its requests are used up.
        """
        if self._ring is not None:
            call.key = await self._ring.find(http.headers)
            self._budgets[call.key.name].request()

    def spend(self, call: Call, prompt_tokens: int) -> None:
        """Count a prompt before it runs.

        Raises: ApiError with 429 if the key's tokens are used up.
        """
        if call.key is not None:
            self._budgets[call.key.name].spend(prompt_tokens)

    def require_model(self, wanted: object) -> None:
        """Check the name of a model.

        Raises: ApiError with 404.
        """
        if wanted is not None and wanted != self.engine.name:
            name = str(wanted)[:64]
            raise ApiError(
                NOT_FOUND,
                f"the model '{name}' does not exist; this is '{self.engine.name}'",
                param="model",
                code="model_not_found",
            )

    def cache_salt(self, call: Call, wanted: str) -> bytes:
        """Return what isolates a call's cached beginnings: its key's name and the salt that it asks for."""
        name = "" if call.key is None else call.key.name
        if not name and not wanted:
            return b""
        return hashlib.blake2b(f"{name}\0{wanted}".encode(), digest_size=SALT_BYTES).digest()

    def priority(self, call: Call, wanted: int | None) -> int:
        """Return a call's priority.

        Raises: ApiError if it is better than its key's.
        """
        best = None if call.key is None else call.key.priority
        if best is not None and wanted is not None and wanted < best:
            raise invalid(f"'priority' is {wanted}; this key's requests have at least {best}", "priority")
        return wanted if wanted is not None else best or 0

    def end(self, call: Call) -> None:
        """Note that a call ended."""
        self.responses[call.status or 500] += 1
        usage, name = call.usage, None if call.key is None else call.key.name
        if call.key is not None and call.usages:
            self._budgets[call.key.name].owe(usage.completion_tokens)
        counts = usage._asdict() if call.usages else {}
        if self._usage_log is not None and call.usages:
            self._usage_log.write(request_id=call.id, key=name, model=self.engine.name, **counts)
        if self._audit_log is not None:
            self._audit_log.write(
                request_id=call.id,
                key=name,
                key_id=None if call.key is None else call.key.id,
                user=call.user,
                client=call.client,
                method=call.method,
                path=call.path[:256],
                status=call.status or 500,
                error=call.error,
                stream=call.stream,
                priority=call.priority,
                seconds=round(call.seconds, 6),
                finish_reasons=call.finish_reasons,
                **counts,
            )


def call_of(http: HttpRequest) -> Call:
    """Return the call that an HTTP request is."""
    call = http.state.call
    assert isinstance(call, Call), "the middleware makes a call of every request"
    return call
