import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokc.cost.gates import COMPARE, METRICS, Found, failed, judge, parse_gate, parse_utilization, read_gates
from tokc.cost.intervals import Interval
from tokc.errors import TokcError, UnknownOption


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("size<=90MB", 90e6),
        ("size <= 1.5 GiB", 1.5 * 2**30),
        ("tpot@8<=40ms", 0.04),
        ("ttft<2s", 2.0),
        ("top1_agree>=98%", 0.98),
        ("tokens_per_s>=200/s", 200.0),
        ("cost_per_mtok<=$0.05", 0.05),
        ("ppl_ratio<=1.03", 1.03),
    ],
)
def test_a_gate_states_a_limit_with_its_unit(text: str, limit: float) -> None:
    assert parse_gate(text).limit == pytest.approx(limit)


def test_a_gate_may_name_a_batch() -> None:
    assert parse_gate("tpot@8<=40ms").batch == 8
    assert parse_gate("tpot<=40ms").batch is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("size", "is no gate"),
        ("size=90MB", "'=' is no comparison; choose from <=, >=, <, >"),
        ("size<=90", "has no unit; it takes B, kB"),
        ("size<=90ms", "has the unit 'ms'"),
        ("size<=-1MB", "is negative"),
        ("tpot<=fast", "is no amount"),
        ("tpot<=40", "has no unit"),
        ("size@8<=90MB", "'size' is not of batch 8"),
        ("tpot@0<=1ms", "not of batch 0"),
    ],
)
def test_a_gate_that_is_none_says_what_is_accepted(text: str, said: str) -> None:
    with pytest.raises(UnknownOption) as raised:
        parse_gate(text)
    assert said in str(raised.value)


def test_an_unknown_metric_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownOption) as raised:
        parse_gate("tpott<=40ms")
    assert all(name in raised.value.problem for name in METRICS)
    assert raised.value.hint == "did you mean 'tpot'?"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.0, 1.9, "met"), (2.1, 3.0, "not met"), (1.5, 2.5, "inconclusive"), (1.0, 2.0, "met")],
)
def test_an_interval_on_both_sides_of_the_limit_is_inconclusive(
    low: float, high: float, verdict: str
) -> None:
    found = Found((low + high) / 2, Interval(low, high), batch=1, repetitions=3)
    assert judge(parse_gate("ttft<=2s"), found).verdict == verdict


def test_a_gate_that_is_not_met_says_by_how_much() -> None:
    assert judge(parse_gate("size<=80MB"), Found(100e6)).excess == pytest.approx(0.25)
    assert judge(parse_gate("top1_agree>=80%"), Found(0.6)).excess == pytest.approx(0.25)
    assert judge(parse_gate("size<=0MB"), Found(1.0)).excess is None


def test_inconclusive_stops_a_pipeline_unless_told_otherwise() -> None:
    judged = [
        judge(parse_gate("ttft<=2s"), Found(2.0, Interval(1.0, 3.0))),
        judge(parse_gate("size<=1MB"), Found(5.0)),
    ]
    assert [one.metric for one in failed(judged, inconclusive_fails=True)] == ["ttft"]
    assert failed(judged, inconclusive_fails=False) == ()


@given(
    figure=st.floats(0.1, 10),
    half=st.floats(0, 5),
    limit=st.floats(0.1, 10),
    sign=st.sampled_from(sorted(COMPARE)),
)
def test_a_wider_interval_never_turns_a_verdict_around(
    figure: float, half: float, limit: float, sign: str
) -> None:
    gate = parse_gate(f"ttft{sign}{limit:.9f}s")
    narrow = judge(gate, Found(figure, Interval(figure - half, figure + half))).verdict
    wide = judge(gate, Found(figure, Interval(figure - half - 1, figure + half + 1))).verdict
    assert wide in {narrow, "inconclusive"}


def test_a_file_of_gates_may_state_price_and_use(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(
        'gates = ["size<=90MB", "tpot@8<=40ms"]\nprice = "0.20/h"\nutilization = 0.3\ninconclusive = "pass"\n'
    )
    found = read_gates(path)
    assert [gate.metric for gate in found.gates] == ["size", "tpot"]
    assert (found.price, found.utilization, found.inconclusive) == ("0.20/h", 0.3, "pass")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gates = []", "no list of gates"),
        ("gates = 'size<=1MB'", "no list of gates"),
        ("limits = ['size<=1MB']", "unknown key 'limits'; choose from gates"),
        ("gates = ['sise<=1MB']", "unknown metric 'sise'"),
        ("gates = ['size<=1MB']\nprice = 2", "'price' is no text"),
        ("gates = ['size<=1MB']\nutilization = 1.5", "not above 0 and at most 100%"),
        ("gates = [", "is not TOML"),
    ],
)
def test_a_wrong_file_of_gates_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "gates.toml"
    path.write_text(text)
    with pytest.raises(UnknownOption) as raised:
        read_gates(path)
    assert said in str(raised.value)


def test_a_missing_file_of_gates_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokcError, match=r"cannot read '.*none\.toml'"):
        read_gates(tmp_path / "none.toml")


def test_utilization_is_a_share() -> None:
    assert parse_utilization("30%") == pytest.approx(parse_utilization("0.3"))
    with pytest.raises(UnknownOption):
        parse_utilization("0")


def test_an_interval_without_end_is_still_judged() -> None:
    judged = judge(parse_gate("cost_per_mtok<=1"), Found(0.5, Interval(0.1, math.inf)))
    assert (judged.verdict, judged.high) == ("inconclusive", None)
