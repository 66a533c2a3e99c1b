"""What the endpoints share: the engine, the limits, who may call, and what is written down."""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest

from tokc.runtime.engine import Engine
from tokc.runtime.sequence import Usage
from tokc.runtime.server.admission import Admission
from tokc.runtime.server.errors import ApiError
from tokc.runtime.server.settings import Settings

NOT_FOUND = 404


@dataclass
class Call:
    """One HTTP request, as the logs know it."""

    id: str
    method: str
    path: str
    client: str | None
    started_s: float = field(default_factory=time.perf_counter)
    status: int | None = None
    user: str | None = None
    stream: bool = False
    usages: list[Usage] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Return the time since it came."""
        return time.perf_counter() - self.started_s


class Service:
    """Serves one engine."""

    def __init__(self, engine: Engine, settings: Settings | None = None) -> None:
        """Let in what `settings` allow."""
        self.engine = engine
        self.settings = settings or Settings()
        self.admission = Admission(places=engine.executor.max_seqs, max_queue=self.settings.max_queue)
        self.responses: Counter[int] = Counter()

    @property
    def status(self) -> str:
        """Return `ok`, `stopping` or `failed`."""
        if self.engine.failure is not None:
            return "failed"
        return "stopping" if self.admission.draining else "ok"

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

    def cache_salt(self, call: Call, wanted: str) -> bytes:  # noqa: ARG002
        """Return what a call's cached beginnings are isolated by."""
        return hashlib.blake2b(wanted.encode(), digest_size=16).digest() if wanted else b""

    def priority(self, call: Call, wanted: int | None) -> int:  # noqa: ARG002
        """Return a call's priority."""
        return wanted or 0

    def end(self, call: Call) -> None:
        """Note that a call ended."""
        self.responses[call.status or 500] += 1


def call_of(http: HttpRequest) -> Call:
    """Return the call that an HTTP request is."""
    call = http.state.call
    assert isinstance(call, Call), "the middleware makes a call of every request"
    return call
