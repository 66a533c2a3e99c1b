"""Twenty seconds of the load that `make soak` holds for ten minutes."""

import asyncio
from collections.abc import Callable

from tests.soak.run import soak


def test_a_server_under_every_manner_of_client_loses_nothing(figure: Callable[[str], None]) -> None:
    outcome = asyncio.run(soak(seconds=20, clients=64, seed=7, keep=100, most_slope_mib_per_min=1.0))
    assert outcome.faults == []
    assert outcome.exit_code == 0
    # Too short for a slope: buffers of 64 connections come first.
    assert outcome.rss_last_mib - outcome.rss_first_mib < 64
    assert outcome.compared == 100
    assert outcome.preemptions > 0
    assert outcome.cached_tokens > 0
    manners = {name.split()[0] for name in outcome.statuses}
    assert manners == {
        "whole", "stream", "hasty", "impatient", "oversized", "malformed", "deaf", "silent"
    }  # fmt: skip
    figure(
        f"soak: {outcome.requests} requests in 20 s, {outcome.compared} answers made again alone, all alike"
    )
