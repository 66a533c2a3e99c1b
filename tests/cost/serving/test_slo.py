"""Objectives are read with their units, and kept or not."""

import pytest

from tokc.cost.serving.slo import kept_by, parse_slo
from tokc.errors import UnknownOption


def test_an_objective_is_read() -> None:
    slo = parse_slo(" ttft_p99 <= 500ms")
    assert (slo.metric, slo.percentile, slo.limit_s, slo.text) == ("ttft", 99, 0.5, "ttft_p99=500ms")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ttft=500ms", "no objective"),
        ("ttft_p99=500", "no unit"),
        ("ttft_p99=-5ms", "negative"),
        ("ttft_p42=5ms", "choose from p50, p90, p95, p99"),
        ("wait_p99=5ms", "choose from ttft, tpot, itl, e2e"),
    ],
)
def test_what_is_no_objective_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UnknownOption, match=problem):
        parse_slo(text)


def test_a_request_keeps_all_objectives_or_not() -> None:
    slos = [parse_slo("ttft_p99=500ms"), parse_slo("tpot_p50=40ms")]
    assert kept_by({"ttft": 0.5, "tpot": 0.04}, slos)
    assert not kept_by({"ttft": 0.5, "tpot": 0.041}, slos)
    assert kept_by({"ttft": 0.4}, slos)  # an answer of one token has no time per token
