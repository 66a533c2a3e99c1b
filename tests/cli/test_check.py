"""Gates over an artifact and a bench of it, through the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report.sample import write_artifact, write_bench
from tokc.cli import build
from tokc.cli.app import app
from tokc.errors import GateNotMet, TokcError, UnknownOption

runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path)


def check(artifact: Path, *arguments: str) -> tuple[int, str, BaseException | None]:
    result = runner.invoke(app, ["check", str(artifact), *arguments])
    return result.exit_code, result.stdout, result.exception


def test_gates_that_are_met_end_well(artifact: Path) -> None:
    write_bench(artifact)
    gates = ("weight_bytes<=90MB", "tpot@1<=5ms", "tokens_per_s@8>=300", "peak_rss<=350MB", "load_s<=1s")
    code, said, _ = check(artifact, *(word for gate in gates for word in ("--gate", gate)))
    assert code == 0
    assert said.count(" met") == len(gates)


def test_a_gate_that_is_not_met_says_which_and_by_how_much(artifact: Path) -> None:
    _, said, error = check(artifact, "--gate", "weight_bytes<=80MB", "--gate", "kv_bytes_per_token<=1GB")
    assert isinstance(error, GateNotMet)
    assert error.problem == "1 of 2 gates stop this: 'weight_bytes<=80MB'"
    row = next(line for line in said.splitlines() if line.startswith("weight_bytes"))
    assert "87.4 MB" in row
    assert "+9.2%" in row


def test_a_difference_within_noise_is_inconclusive(artifact: Path) -> None:
    write_bench(artifact)  # tpot at batch 1: 3.28 to 3.59 ms over three repetitions
    _, said, error = check(artifact, "--gate", "tpot@1<=3.5ms")
    assert isinstance(error, GateNotMet)
    assert "inconclusive" in said
    assert "--repetitions 10" in str(error)
    assert check(artifact, "--gate", "tpot@1<=3.5ms", "--inconclusive", "pass")[0] == 0


def test_a_gate_without_a_batch_holds_at_every_one(artifact: Path) -> None:
    write_bench(artifact)
    _, said, error = check(artifact, "--gate", "tpot<=5ms", "--json")
    assert isinstance(error, GateNotMet)
    verdicts = {row["batch"]: row["verdict"] for row in json.loads(said)["gates"]}
    assert verdicts == {1: "met", 8: "not met"}


def test_a_cost_is_that_of_the_rate_the_price_and_the_use(artifact: Path) -> None:
    write_bench(artifact)
    gate = ("--gate", "cost_per_mtok@8<=10", "--price", "0.20/h", "--json")
    full = json.loads(check(artifact, *gate)[1])["gates"][0]
    half = json.loads(check(artifact, *gate, "--utilization", "50%")[1])["gates"][0]
    mean = 389.0 * (0.96 + 1 + 1.05) / 3
    assert full["figure"] == pytest.approx(0.20 / 3600 / mean * 1e6)
    assert full["low"] < full["figure"] < full["high"]
    assert half["figure"] == pytest.approx(2 * full["figure"])


@pytest.mark.parametrize(
    ("gate", "command"),
    [
        ("tpot<=5ms", "tokc bench"),
        ("kl_mean<=1", "tokc build MODEL --check"),
        ("peak_rss<=1GB", "tokc bench"),
    ],
)
def test_what_was_not_measured_names_the_command_that_does(artifact: Path, gate: str, command: str) -> None:
    error = check(artifact, "--gate", gate)[2]
    assert isinstance(error, TokcError)
    assert "was not measured" in error.problem
    assert command in str(error.hint)


def test_a_batch_that_was_not_measured_says_how_to(artifact: Path) -> None:
    write_bench(artifact)
    error = check(artifact, "--gate", "tpot@4<=5ms")[2]
    assert "the bench has batch 1, 8, not 4" in str(error)
    assert "--batch 4" in str(error)


def test_a_bench_of_another_build_does_not_count(artifact: Path) -> None:
    bench = write_bench(artifact)
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.1.0", "0.1.1"))
    assert "no bench of this build" in str(check(artifact, "--gate", "tpot<=5ms")[2])
    error = check(artifact, "--gate", "tpot<=5ms", "--bench", str(bench))[2]
    assert "the bench is of another build" in str(error)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--gate", "tpop<=5ms"),
        ("--gate", "cost_per_mtok<=1"),
        ("--gate", "size<=1GB", "--utilization", "0"),
        ("--gate", "size<=1GB", "--inconclusive", "maybe"),
    ],
)
def test_wrong_usage(artifact: Path, arguments: tuple[str, ...]) -> None:
    code, _, error = check(artifact, *arguments)
    assert code == 2 or isinstance(error, UnknownOption)


def test_the_ledger_holds_quality(artifact: Path) -> None:
    quality = artifact / "quality.json"
    value = json.loads(quality.read_text())
    value["final"] = {"positions": 24, "kl_mean": 0.02, "top1_agree": 0.97}
    quality.write_text(json.dumps(value))
    assert check(artifact, "--gate", "kl_mean<=0.03", "--gate", "top1_agree>=95%")[0] == 0
    assert "not measured" in str(check(artifact, "--gate", "ppl_ratio<=1.03")[2])


def test_markdown_is_for_a_pull_request(artifact: Path) -> None:
    write_bench(artifact)
    said = check(artifact, "--gate", "tpot@1<=3.5ms", "--gate", "weight_bytes<=1MB", "--markdown")[1]
    assert said.startswith("### Gates of `SmolLM2-135M-Instruct.tokc`: 1 not met, 1 inconclusive\n")
    assert "| `weight_bytes<=1MB` | – | 87.4 MB |" in said
    assert "❌ not met" in said


def test_a_bench_on_a_busy_machine_says_so(artifact: Path) -> None:
    bench = write_bench(artifact)
    bench.write_text(json.dumps({**json.loads(bench.read_text()), "foreign_cpu": 0.4}))
    said = "ther programs took 40% of the cores"
    assert said in check(artifact, "--gate", "tpot<=1s")[1]
    assert said in check(artifact, "--gate", "tpot<=1s", "--markdown")[1]
    assert said not in check(artifact, "--gate", "weight_bytes<=1GB")[1]


def test_gates_come_from_a_file(artifact: Path, tmp_path: Path) -> None:
    write_bench(artifact)
    path = tmp_path / "gates.toml"
    path.write_text(
        'gates = ["cost_per_mtok@8<=1", "tpot@1<=3.5ms"]\nprice = "0.20/h"\ninconclusive = "pass"\n'
    )
    assert check(artifact, "--gates", str(path))[0] == 0
    assert isinstance(check(artifact, "--gates", str(path), "--inconclusive", "fail")[2], GateNotMet)


def test_a_bench_for_a_builds_gates_that_fails_says_why(artifact: Path) -> None:
    with pytest.raises(TokcError, match=r"the gates need a bench, which failed: ") as raised:
        build._measure(artifact, [1])
    assert f"tokc bench {artifact}" in str(raised.value.hint)


def test_the_metrics_are_listed(artifact: Path) -> None:
    found = json.loads(check(artifact, "--metrics", "--json")[1])
    assert found["tpot"] == {"kind": "seconds", "source": "bench"}
    assert "cost_per_mtok[@BATCH]" in check(artifact, "--metrics")[1]
