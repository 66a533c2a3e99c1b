"""`tokc serve`: the OpenAI endpoints over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra
from tokc.cli.run import Speculate


def serve(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: every core]")] = None,
    kv_mb: Annotated[int | None, typer.Option(min=1, help="Megabytes for the cache.")] = None,
    speculate: Speculate = None,
) -> None:
    """Serve a model: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics."""
    import tokc

    with needs_extra("serve", "serve"):
        import uvicorn

        from tokc.runtime.server.app import create_app
    kv_bytes = None if kv_mb is None else kv_mb * 1_000_000
    with tokc.load(artifact, threads=threads, kv_bytes=kv_bytes, speculate=speculate) as engine:
        engine.prepare()
        uvicorn.run(create_app(engine), host=host, port=port, log_level="info")
