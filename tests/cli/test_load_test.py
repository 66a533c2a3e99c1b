"""`tokc load-test` over the tiny model, and the gates that its figures are held to."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokc
from tests.report.sample import write_artifact
from tests.runtime.conftest import MakeEngine, make_engine
from tests.runtime.server.background import serving
from tokc.cli.app import app
from tokc.errors import GateNotMet, TokcError
from tokc.runtime.server.service import Service

runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
SHORT = ("--requests", "12", "--concurrency", "2", "--price", "3.60/h")
__all__ = ["make_engine"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    rows = [{"prompt": f"prompt {index}", "output_tokens": 5, "at_s": index * 0.002} for index in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def artifact(tmp_path: Path, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Path:
    engine = make_engine(context_length=64, num_pages=256)
    monkeypatch.setattr(tokc, "load", lambda *_, **__: engine, raising=False)
    return write_artifact(tmp_path)


def load_test(*arguments: object) -> dict[str, object]:
    result = runner.invoke(app, ["load-test", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_trace_is_replayed_and_written_beside_the_artifact(artifact: Path, trace: Path) -> None:
    result = load_test(artifact, "--workload", trace, "--slo", "ttft_p99=10s")
    [point] = result["points"]  # type: ignore[misc]
    assert point["arrival"] == "as traced"
    assert (point["requests"], point["output_tokens"], point["slo_kept"]) == (12, 60, True)
    assert json.loads(artifact.with_name(f"{artifact.stem}.load.json").read_text()) == result


def test_tables_name_every_load_and_what_its_tokens_cost(artifact: Path, trace: Path) -> None:
    result = runner.invoke(
        app, ["load-test", str(artifact), "--workload", str(trace), *SHORT, "--rate", "500"]
    )
    assert result.exit_code == 0, result.output
    for text in ("2 at once", "500/s", "p99", "USD for 1M tokens, measured", "10%"):
        assert text in result.stdout


def test_a_server_is_tested_through_its_url(make_engine: MakeEngine, trace: Path, tmp_path: Path) -> None:
    with serving(Service(make_engine(context_length=64, num_pages=256))) as served:
        out = tmp_path / "server.json"
        result = load_test("--url", served.url, "--workload", trace, *SHORT, "--out", out)
    assert (result["artifact"], result["url"], result["manifest_sha256"]) == ("hash", served.url, None)
    assert json.loads(out.read_text()) == result


def test_gates_bound_percentiles_and_goodput(artifact: Path, trace: Path) -> None:
    load_test(artifact, "--workload", trace, *SHORT, "--slo", "e2e_p99=10s")
    gates = ("ttft_p99<=10s", "tpot_p50@2<=10s", "goodput>=0.1", "e2e_p95<=10s")
    check = ["check", str(artifact), *(word for gate in gates for word in ("--gate", gate))]
    assert runner.invoke(app, check).exit_code == 0
    result = runner.invoke(app, ["check", str(artifact), "--gate", "ttft_p99<=1ns"])
    assert isinstance(result.exception, GateNotMet)


def test_a_gate_says_which_command_measures_its_figure(artifact: Path) -> None:
    result = runner.invoke(app, ["check", str(artifact), "--gate", "ttft_p99<=1s"])
    assert isinstance(result.exception, TokcError)
    assert "tokc load-test" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--workload", "chit-chat"), "unknown workload"),
        (("--slo", "ttft_p99=5"), "no unit"),
        (("--price", "-1/h"), "neither an hourly price"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    artifact: Path, arguments: tuple[str, ...], problem: str
) -> None:
    result = runner.invoke(app, ["load-test", str(artifact), *arguments])
    assert isinstance(result.exception, TokcError)
    assert problem in str(result.exception)
    assert not artifact.with_name(f"{artifact.stem}.load.json").exists()


def test_an_artifact_or_a_url_is_needed(artifact: Path) -> None:
    for arguments in ([], [str(artifact), "--url", "http://x"]):
        assert runner.invoke(app, ["load-test", *arguments]).exit_code == 2
