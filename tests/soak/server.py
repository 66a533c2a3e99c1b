"""The server under load: the tiny model whose tokens depend on every page it reads, until SIGTERM."""

import sys
from collections import deque

from tests.runtime.hash_model import CHATML, EOS, HashModel, byte_tokenizer
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.engine import Engine
from tokc.runtime.server.service import Service
from tokc.runtime.server.serving import listen, serve_until_stopped, server_of
from tokc.runtime.server.settings import Settings

SETTINGS = Settings(
    max_queue=40,
    max_body_bytes=256 << 10,
    request_timeout_s=30.0,
    body_timeout_s=2.0,
    header_timeout_s=2.0,
    write_timeout_s=2.0,
    drain_s=10.0,
)

CACHED_WORDS = 10_500


def main() -> int:
    """Serve and print the port."""
    # Fewer pages than all sequences need, so that some are preempted.
    model = HashModel(context_length=192, num_pages=160, max_tokens=64, max_seqs=16)
    model.steps = deque(maxlen=1)  # type: ignore[assignment] # it keeps every batch otherwise
    engine = Engine(
        model, byte_tokenizer(), name="hash", eos_ids=[EOS], chat_template=ChatTemplate(CHATML, {})
    )
    # The tokenizers library keeps the last 10,000 words that it saw; here a prompt is one word.
    for number in range(CACHED_WORDS):
        engine.tokenizer.encode(f"{number:<40}")
    with engine:
        listener = listen("127.0.0.1", 0, write_timeout_s=SETTINGS.write_timeout_s)
        port = listener.getsockname()[1]
        server = server_of(Service(engine, SETTINGS))
        return serve_until_stopped(server, listener, lambda: print(port, flush=True))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
