import io
import json
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.report.sample import HOST, write_artifact, write_bench
from tokc.cli.app import app
from tokc.cost import machine
from tokc.cost.hosted import Hosted, break_even, hosted_sheet, named_hosted
from tokc.cost.sheet import device_sheet
from tokc.errors import TokcError, UnknownOption
from tokc.report import compare_text
from tokc.report.compare import HERE, Comparison, Option, cheapest, compare, parse_prices

TODAY = date(2026, 11, 25)
API = Hosted("api", "a model", 0.1, 0.4, "2026-06-01", "a page")
runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path)


def over(
    artifact: Path, devices: list[str] | None = None, *prices: str, hosted: tuple[Hosted, ...] = (API,)
) -> Comparison:
    return compare([artifact], devices, parse_prices(prices), hosted, TODAY)


def at(found: Comparison, device: str, batch: int) -> Option:
    return next(one for one in found.options if (one.device, one.batch) == (device, batch))


def test_a_bench_is_measured_and_a_device_is_predicted(artifact: Path) -> None:
    write_bench(artifact)
    found = over(artifact, ["l4"], "0.20/h", "l4=0.80/h")
    assert {(one.device, one.basis) for one in found.options} == {(HERE, "measured"), ("l4", "predicted")}
    here = at(found, HERE, 8)
    mean = 389.0 * (0.96 + 1 + 1.05) / 3
    assert here.tokens_per_s == pytest.approx(mean)
    assert (here.low or 0) < mean < (here.high or 0)
    assert here.at(1.0) == pytest.approx(0.20 / 3600 / mean * 1e6)
    assert at(found, "l4", 8).foreign
    assert at(found, "l4", 8).low is None


def test_a_prediction_is_the_published_share_of_the_roofline_of_the_counted_work(artifact: Path) -> None:
    found = at(over(artifact, ["h100-sxm"], "h100-sxm=2/h"), "h100-sxm", 1)
    sheet = device_sheet()["h100-sxm"]
    launches_s = (121 + 30 + 30 + 60 + 30 + 1) * (sheet.launch_s or 0.0)
    moved = 8.62e7 + 2.36e7 * 160 / 1024 + 2.9e5 + 5.5e5 + 5.5e5 + 3e3
    step_s = launches_s + moved / (0.83 * sheet.read_bytes_per_s)
    assert 64 / found.tokens_per_s == pytest.approx(64 * step_s, rel=0.1)


def test_half_the_use_costs_twice_as_much_and_half_the_price_half(artifact: Path) -> None:
    full = at(over(artifact, ["l4"], "l4=0.80/h"), "l4", 8)
    half = at(over(artifact, ["l4"], "l4=0.40/h"), "l4", 8)
    assert full.at(0.3) == pytest.approx(2 * (full.at(0.6) or 0))
    assert half.at(0.3) == pytest.approx((full.at(0.3) or 0) / 2)
    costs = [one.usd_per_mtok for one in full.costs]
    assert costs == sorted(costs, reverse=True)


def test_the_break_even_by_hand(artifact: Path) -> None:
    write_bench(artifact)
    found = over(artifact, None, "0.20/h")
    (one,) = found.break_evens
    assert one.batch == 8
    assert one.hosted_usd_per_mtok == pytest.approx(0.4 + 0.1 * 128 / 64)
    full = at(found, HERE, 8).at(1.0) or 0
    assert one.utilization == pytest.approx(full / 0.6)
    # at that use both cost the same
    assert full / one.utilization == pytest.approx(one.hosted_usd_per_mtok)


def test_a_machine_that_costs_more_at_full_load_never_wins(artifact: Path) -> None:
    write_bench(artifact)
    said = shown(over(artifact, None, "0.20/h", hosted=(Hosted("cheap", "m", 0, 0.01, "2026-06-01", "s"),)))
    assert "never" in said
    assert break_even(0.02, 0.01) == 2


def test_a_device_without_a_price_has_no_cost_and_says_so(artifact: Path) -> None:
    found = over(artifact, ["l4"])
    assert at(found, "l4", 1).costs == ()
    assert "no price for l4: --price 'l4=2.50/h' states one" in found.notes
    assert found.break_evens == ()


def test_what_does_not_fit_a_device_is_left_out_and_named(artifact: Path) -> None:
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("87400000", "30000000000"))
    found = over(artifact, ["l4", "h100-sxm"])
    assert {one.device for one in found.options} == {"h100-sxm"}
    assert any("batch 8 does not fit the memory of l4" in note for note in found.notes)


def test_without_bench_and_devices_this_machine_is_predicted(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "probe", lambda **_: HOST)
    found = over(artifact)
    assert {(one.device, one.basis) for one in found.options} == {(HERE, "predicted")}
    assert "aws:c7i.large" in (found.options[0].price or "")


def test_an_artifact_of_an_accelerator_is_predicted_for_its_device(artifact: Path) -> None:
    manifest = artifact / "manifest.json"
    value = json.loads(manifest.read_text())
    value["target"] |= {"kind": "cuda", "device": "sm_89"}
    manifest.write_text(json.dumps(value))
    assert {(one.device, one.foreign) for one in over(artifact).options} == {("l4", False)}


def test_the_cheapest_batch_stands_for_each_device(artifact: Path) -> None:
    write_bench(artifact)
    best = cheapest(over(artifact, ["l4"], "l4=1/h").options)
    assert [(one.device, one.batch) for one in best] == [(HERE, 8), ("l4", 8)]


def test_every_hosted_price_has_a_date_and_a_source() -> None:
    for name, row in hosted_sheet().items():
        assert row.name == name
        assert row.source
        assert 0 < row.usd_per_input_mtok <= row.usd_per_output_mtok
        assert date.fromisoformat(row.published) <= TODAY


def test_a_stale_price_is_a_note(artifact: Path) -> None:
    old = Hosted("old", "m", 0.1, 0.4, "2025-02-20", "s")
    assert old.stale(TODAY)
    assert not API.stale(TODAY)
    assert any(
        "old: the price is of 2025-02-20" in note for note in over(artifact, ["l4"], hosted=(old,)).notes
    )


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["l5=1/h"], "unknown device 'l5'"),
        (["1/h", "2/h"], "two prices for this machine"),
        (["l4=-1/h"], "neither an hourly price"),
    ],
)
def test_wrong_prices_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(TokcError, match=said):
        parse_prices(texts)


def test_unknown_names_are_refused(artifact: Path) -> None:
    with pytest.raises(UnknownOption, match="unknown device 'l5'; choose from"):
        over(artifact, ["l5"])
    with pytest.raises(UnknownOption, match="unknown hosted API 'x'; choose from"):
        named_hosted(["x"])


def shown(found: Comparison) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(compare_text.terminal(found))
    return out.getvalue()


def test_the_command_prints_tables_markdown_and_json(artifact: Path) -> None:
    write_bench(artifact)
    asked = ["compare", str(artifact), "--devices", "l4,h100-sxm", "--price", "0.2/h", "--price", "l4=0.8/h"]
    said = runner.invoke(app, asked).stdout
    for part in ("10% in use", "predicted*", "Break-even", "Hosted APIs", "█"):
        assert part in said
    value = json.loads(runner.invoke(app, [*asked, "--hosted", "none", "--json"]).stdout)
    assert value["break_evens"] == []
    assert len(value["options"]) == 6
    assert runner.invoke(app, [*asked, "--markdown"]).stdout.startswith("### Cost of a million output tokens")


def test_all_devices_are_predicted_with_what_fits_them(artifact: Path) -> None:
    found = over(artifact, ["all"])
    assert {room.device for room in found.rooms} == set(device_sheet())
    l4 = next(room for room in found.rooms if room.device == "l4")
    weights, kv = 107e6, 23040
    assert l4.kv_tokens == pytest.approx((24e9 - weights) * 0.85 / kv, rel=0.01)
    for one in l4.contexts:
        assert one.sequences == l4.kv_tokens // one.context
        assert one.batch <= one.sequences


def test_what_does_not_fit_has_no_cost(artifact: Path) -> None:
    found = over(artifact, ["groq-lpu"])
    longest = found.rooms[0].contexts[-1]
    assert found.rooms[0].kv_tokens * 23040 < 230e6
    assert (longest.sequences == 0) == (longest.tokens_per_s is None)


def test_a_longer_context_never_costs_less_at_the_same_price(artifact: Path) -> None:
    (room,) = over(artifact, ["l4"], "l4=0.80/h").rooms
    costs = [one.usd_per_mtok for one in room.contexts]
    assert costs == sorted(costs)
