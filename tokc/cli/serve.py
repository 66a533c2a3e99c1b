"""`tokc serve`: the OpenAI endpoints over HTTP."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import tokc
from tokc.cli.console import needs_extra
from tokc.cli.run import Artifact, Speculative, Threads

if TYPE_CHECKING:
    from tokc.runtime.engine import Engine
    from tokc.runtime.server.keys import Key
    from tokc.runtime.server.serving import Tls
    from tokc.runtime.server.settings import Settings
    from tokc.runtime.server.tracing import Tracing

LIMITS, SECURITY, LOGS = "Limits", "Security", "Logs"


def _option(help_text: str, panel: str, **more: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, **more)


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
KvMb = Annotated[int | None, typer.Option(min=1, help="Megabytes for the cache.")]
ApiKeys = Annotated[Path | None, _option("File of keys; `tokc key` makes a line.", SECURITY)]
TlsCert = Annotated[Path | None, _option("Certificate chain, PEM.", SECURITY)]
TlsKey = Annotated[Path | None, _option("The certificate's key, PEM.", SECURITY)]
Signature = Annotated[Path | None, _option("Public key, PEM: serve only what its owner signed.", SECURITY)]
AllowPublic = Annotated[bool, _option("Let other machines in without keys.", SECURITY)]
MaxQueue = Annotated[int, _option("Answers that may wait; more get 429.", LIMITS, min=0)]
MaxPrompt = Annotated[int | None, _option("Tokens; the context if not given.", LIMITS, min=1)]
MaxBodyMb = Annotated[float, _option("Megabytes of a request.", LIMITS, min=0.001)]
Timeout = Annotated[float, _option("Seconds for a request; 0 is no limit.", LIMITS, min=0.0)]
Drain = Annotated[float, _option("Seconds to finish what runs after SIGTERM.", LIMITS, min=0.0)]
UsageLog = Annotated[Path | None, _option("Tokens by key, a JSON line a request.", LOGS)]
Otlp = Annotated[str | None, _option("Send traces to this OTLP collector, as http://localhost:4318.", LOGS)]
AuditLog = Annotated[Path | None, _option("Every request without its content.", LOGS)]


def serve(
    artifact: Artifact,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    threads: Threads = None,
    kv_mb: KvMb = None,
    speculative: Speculative = None,
    api_keys: ApiKeys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    allow_public: AllowPublic = False,
    require_signature: Signature = None,
    max_queue: MaxQueue = 256,
    max_prompt_tokens: MaxPrompt = None,
    max_body_mb: MaxBodyMb = 4.0,
    request_timeout: Timeout = 600.0,
    drain: Drain = 30.0,
    usage_log: UsageLog = None,
    audit_log: AuditLog = None,
    otlp_endpoint: Otlp = None,
) -> None:
    """Serve a model by OpenAI's API. SIGTERM lets running requests finish; a second stops at once."""
    with needs_extra("serve", "serve"):
        from tokc.runtime.server.keys import read_keys
        from tokc.runtime.server.serving import require_safe_bind, tls_of
        from tokc.runtime.server.settings import Settings
    settings = Settings(
        max_queue=max_queue,
        max_prompt_tokens=max_prompt_tokens,
        max_body_bytes=int(max_body_mb * 1_000_000),
        request_timeout_s=request_timeout or None,
        drain_s=drain,
    )
    tls, keys = tls_of(tls_cert, tls_key), None if api_keys is None else read_keys(api_keys)
    for warning in require_safe_bind(
        host, has_keys=keys is not None, has_tls=tls is not None, allow=allow_public
    ):
        typer.echo(f"warning: {warning}", err=True)
    kv_bytes = None if kv_mb is None else kv_mb * 1_000_000
    load = partial(
        tokc.load,
        artifact,
        threads=threads,
        kv_bytes=kv_bytes,
        speculative_config=speculative,
        require_signature=require_signature,
    )
    logs = Logs(usage_log, audit_log, otlp_endpoint)
    raise typer.Exit(_serve(load, settings, (host, port), tls, keys, logs))


class Logs(NamedTuple):
    """Where requests are written down: files, and a collector of traces."""

    usage: Path | None
    audit: Path | None
    otlp: str | None


def _tracing(model: str, endpoint: str) -> "closing[Tracing]":
    with needs_extra("otel", "serve --otlp-endpoint"):
        from tokc.runtime.server.tracing import Tracing, otlp

        return closing(Tracing(model, otlp(endpoint)))


def _serve(
    load: "Callable[[], Engine]",
    settings: "Settings",
    address: tuple[str, int],
    tls: "Tls | None",
    keys: "list[Key] | None",
    logs: Logs,
) -> int:
    """Load and serve; returns the exit code."""
    from tokc.runtime.server.ledger import JsonLines
    from tokc.runtime.server.service import Service
    from tokc.runtime.server.serving import listen, serve_until_stopped, server_of

    with ExitStack() as stack:
        usage, audit = (
            None if path is None else stack.enter_context(JsonLines(path))
            for path in (logs.usage, logs.audit)
        )
        listener = stack.enter_context(listen(*address, write_timeout_s=settings.write_timeout_s))
        engine = stack.enter_context(load())
        engine.prepare()
        tracing = None if logs.otlp is None else stack.enter_context(_tracing(engine.name, logs.otlp))
        service = Service(engine, settings, keys=keys, usage_log=usage, audit_log=audit, tracing=tracing)
        place = f"{'http' if tls is None else 'https'}://{address[0]}:{listener.getsockname()[1]}"
        server = server_of(service, tls=tls)
        return serve_until_stopped(
            server, listener, lambda: typer.echo(f"serving {engine.name} at {place}", err=True)
        )
