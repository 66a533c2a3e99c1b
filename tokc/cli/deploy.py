"""`tokc deploy`: replicas of an engine behind one endpoint, on a cluster."""

import signal
import threading
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

import tokc
from tokc.cli.console import needs_extra
from tokc.cli.run import Artifact
from tokc.cli.serve import AllowPublic, ApiKeys, Drain, Host, KvMb, MaxQueue, Port, Signature

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Cluster(StrEnum):
    """What runs the replicas."""

    RAY = "ray"


Least = Annotated[int, typer.Option("--replicas", min=1, help="Replicas; with --max-replicas the fewest.")]
Most = Annotated[int | None, typer.Option("--max-replicas", min=1, help="Add up to so many under load.")]
Ongoing = Annotated[int, typer.Option(min=1, help="Requests that a replica has at once; others wait.")]
Cores = Annotated[int, typer.Option("--threads", min=1, help="Threads of a replica, and cores kept for it.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster that runs, as auto; else one is made here.")]


def deploy(
    cluster: Annotated[Cluster, typer.Argument(help="What runs the replicas.")],
    artifact: Artifact,
    *,
    replicas: Least = 1,
    max_replicas: Most = None,
    ongoing: Ongoing = 16,
    address: Address = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    threads: Cores = 2,
    kv_mb: KvMb = None,
    api_keys: ApiKeys = None,
    allow_public: AllowPublic = False,
    require_signature: Signature = None,
    max_queue: MaxQueue = 256,
    drain: Drain = 30.0,
) -> None:
    """Serve a model by replicas behind one endpoint; Ray places, watches and scales them.

    On a cluster that runs already the command returns; on one made here it stays until it is stopped.
    """
    with needs_extra("serve", f"deploy {cluster.value}"):
        from tokc.runtime.server.keys import read_keys
        from tokc.runtime.server.serving import require_safe_bind
        from tokc.runtime.server.settings import Settings
    with needs_extra("ray", f"deploy {cluster.value}"):
        from tokc.runtime.server.replicas import Scale, deployed
    keys = None if api_keys is None else read_keys(api_keys)
    for warning in require_safe_bind(host, has_keys=keys is not None, has_tls=False, allow=allow_public):
        typer.echo(f"warning: {warning}", err=True)
    load = partial(
        tokc.load,
        artifact.resolve(),
        threads=threads,
        kv_bytes=None if kv_mb is None else kv_mb * 1_000_000,
        require_signature=require_signature,
    )
    scale = Scale(replicas, max(replicas, max_replicas or replicas), ongoing, float(threads))
    settings = Settings(max_queue=max_queue, drain_s=drain)
    with deployed(load, scale, settings, keys, cluster=address, listen=(host, port)):
        typer.echo(f"serving {artifact.name} at http://{host}:{port}", err=True)
        if address is None:
            _wait_for_signal()


def _wait_for_signal() -> None:
    stopped = threading.Event()
    for number in SIGNALS:
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
