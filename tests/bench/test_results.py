"""What the table concludes from measurements: screening, ratios, goals, memory and the roof."""

import pytest

from bench.foreign import Measurement
from bench.results import Figures, conclusions, roof_share
from bench.rows import ROWS


def measured(value: float, rss_mb: float = 100.0, **facts: float) -> Measurement:
    result = {"value": value, "repeats": [value], "load_s": 0.1, "rss_mb": rss_mb, **facts}
    return Measurement(result, foreign_cpu_s=0.0, wall_s=1.0)


def figures(name: str, **programs: list[Measurement]) -> Figures:
    found = Figures(ROWS[name])
    for program, rounds in programs.items():
        for each in rounds:
            found.add(program, each)
    return found


def test_a_peer_far_behind_the_best_one_is_not_measured_again() -> None:
    fast = figures(
        "prefill512_smollm2",
        tokc=[measured(10)],
        llamacpp=[measured(69)],
        openvino=[measured(100)],
        torch=[measured(71)],
    )
    assert fast.screened() == ["llamacpp"]
    cold = figures("cold_start", tokc=[measured(9)], llamacpp=[measured(1.0)], openvino=[measured(1.31)])
    assert cold.screened() == ["openvino"]


def test_the_ratio_is_the_median_over_rounds_to_the_peer_with_the_best_median() -> None:
    row = figures(
        "prefill512_smollm2",
        tokc=[measured(30), measured(24), measured(40)],
        llamacpp=[measured(99)],
        openvino=[measured(100), measured(120), measured(80)],
    )
    assert row.best_peer == "openvino"
    assert row.ratios == [0.3, 0.2, 0.5]
    assert row.to_json()["ratio"] == 0.3


def test_where_lower_is_better_the_best_peer_is_the_lowest_and_a_goal_is_an_upper_bound() -> None:
    row = figures("cold_start", tokc=[measured(0.2)], llamacpp=[measured(0.5)], openvino=[measured(2.0)])
    found = conclusions({"cold_start": row.to_json()})
    assert found["best_peer"] == {"cold_start": "llamacpp"}
    assert found["ratios"] == {"cold_start": 0.4}
    assert found["goals"]["cold_start"] == {"goal": 0.5, "of": "ratio", "figure": 0.4, "met": True}


def test_a_goal_of_tokcs_own_figure_needs_no_peer() -> None:
    found = conclusions({"verify_k4_1b": figures("verify_k4_1b", tokc=[measured(1.5)]).to_json()})
    assert found["goals"]["verify_k4_1b"] == {"goal": 1.35, "of": "value", "figure": 1.5, "met": False}
    assert found["ratios"] == {}


def test_the_roof_is_what_steps_read_over_what_memory_gives() -> None:
    assert roof_share(50.0, 8e8, 5e10) == 0.8
    facts = {"step_bytes": 8e8, "read_bytes_per_s": 5e10}
    row = figures("decode_b1_1b", tokc=[measured(55, **facts), measured(50, **facts), measured(40, **facts)])
    found = conclusions({"decode_b1_1b": row.to_json()})
    assert found["roof"] == {"decode_b1_1b": pytest.approx(0.8)}
    assert not found["goals"]["roof_decode_b1_1b"]["met"]


def test_peak_memory_is_the_highest_of_both_rows_and_compared_with_the_least_peer() -> None:
    facts = {"step_bytes": 1.0, "read_bytes_per_s": 1.0}
    decode = figures(
        "decode_b1_1b",
        tokc=[measured(1, 80, **facts)],
        llamacpp=[measured(1, 100)],
        torch=[measured(1, 50)],
    )
    prefill = figures(
        "prefill512_1b", tokc=[measured(1, 90)], llamacpp=[measured(1, 60)], torch=[measured(1, 300)]
    )
    rows = {"decode_b1_1b": decode.to_json(), "prefill512_1b": prefill.to_json()}
    memory = conclusions(rows)["peak_rss"]["peak_rss_1b"]
    assert memory == {
        "rss_mb": {"llamacpp": 100, "tokc": 90, "torch": 300},
        "best_peer": "llamacpp",
        "ratio": 0.9,
    }
