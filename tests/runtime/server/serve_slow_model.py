"""Serves the slow model until a signal: the process of the tests of stopping. Argument: seconds to drain."""

import sys

from tests.runtime.hash_model import byte_tokenizer
from tests.runtime.server.gated_model import SlowModel
from tokc.runtime.engine import Engine
from tokc.runtime.server.service import Service
from tokc.runtime.server.serving import listen, serve_until_stopped, server_of
from tokc.runtime.server.settings import Settings

with Engine(SlowModel(context_length=2048, num_pages=1024), byte_tokenizer(), name="hash") as engine:
    service = Service(engine, Settings(drain_s=float(sys.argv[1])))
    listener = listen("127.0.0.1", 0, write_timeout_s=5)
    port = listener.getsockname()[1]
    code = serve_until_stopped(server_of(service), listener, lambda: print(port, flush=True))  # noqa: T201
sys.exit(code)
