"""What the server allows: sizes, times and numbers."""

from typing import NamedTuple


class Settings(NamedTuple):
    """Limits; seconds end in `_s`. None is no limit.

    A request that crosses the end of its idle connection is lost, so `keep_alive_s` is longer than clients
    and balancers keep one: 5 s OpenAI's client, 60 s AWS's load balancer, 90 s Go's.
    """

    max_queue: int = 256
    max_prompt_tokens: int | None = None
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 16 << 10
    max_json_depth: int = 32
    max_connections: int = 1024
    request_timeout_s: float | None = 600.0
    body_timeout_s: float = 30.0
    header_timeout_s: float = 15.0
    keep_alive_s: int = 120
    write_timeout_s: float = 30.0
    drain_s: float = 30.0
