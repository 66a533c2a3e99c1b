"""`tokc eval` through the command line, and what gates, reports and comparisons make of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.reading_model import reading_folder
from tests.report.sample import write_artifact, write_bench
from tokc.cli.app import app
from tokc.cost import records
from tokc.cost.evaluation import Divergence, Estimate, Evaluation, Tokens
from tokc.errors import GateNotMet
from tokc.report.collect import manifest_sha256
from tokc.report.quality import evaluation_of, evaluation_path

runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
EVALUATION = Evaluation(
    subject="SmolLM2-135M-Instruct.tokc",
    manifest_sha256=None,
    tokens=Tokens("tokc's evaluation text", "0" * 64, 16, 512, 255),
    perplexity=Estimate(21.5, 17.0, 27.0),
    divergence=Divergence(
        reference="SmolLM2.gguf",
        perplexity=Estimate(21.0, 16.6, 26.5),
        ppl_ratio=Estimate(1.024, 1.018, 1.03),
        kl_mean=Estimate(0.021, 0.019, 0.023),
        kl_p99=0.2,
        top1_agree=Estimate(0.93, 0.92, 0.94),
        max_abs_logit_diff=2.5,
        mean_abs_logit_diff=0.3,
    ),
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path)


def write(artifact: Path, evaluation: Evaluation = EVALUATION) -> None:
    records.write(evaluation_path(artifact), replace(evaluation, manifest_sha256=manifest_sha256(artifact)))


def verdicts(artifact: Path, *gates: str) -> tuple[list[str], BaseException | None]:
    asked = [word for gate in gates for word in ("--gate", gate)]
    result = runner.invoke(app, ["check", str(artifact), *asked, "--json"])
    return [row["verdict"] for row in json.loads(result.stdout)["gates"]], result.exception


def test_gates_are_judged_by_the_evaluations_intervals(artifact: Path) -> None:
    write(artifact)
    found, error = verdicts(artifact, "ppl_ratio<=1.031", "ppl_ratio<=1.02", "kl_mean<=0.01", "kl_p99<=0.3")
    assert found == ["met", "inconclusive", "not met", "met"]
    assert isinstance(error, GateNotMet)


def test_an_evaluation_counts_before_the_ledger(artifact: Path) -> None:
    quality = artifact / "quality.json"
    ledger = json.loads(quality.read_text()) | {"final": {"kl_mean": 0.5, "top1_agree": 0.1}}
    quality.write_text(json.dumps(ledger))
    assert verdicts(artifact, "kl_mean<=0.03")[0] == ["not met"]
    write(artifact)
    assert verdicts(artifact, "kl_mean<=0.03", "top1_agree>=90%")[0] == ["met", "met"]


def test_an_evaluation_of_another_build_does_not_count(artifact: Path) -> None:
    write(artifact)
    assert evaluation_of(artifact) is not None
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.1.0", "0.1.1"))
    assert evaluation_of(artifact) is None
    result = runner.invoke(app, ["check", str(artifact), "--gate", "ppl_ratio<=2"])
    assert "tokc eval" in str(result.exception)


def test_two_models_are_evaluated_and_the_same_file_is_written_twice(tmp_path: Path) -> None:
    one, two = (reading_folder(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    out = tmp_path / "one.json"
    command = ["eval", str(one), "--reference", str(two), "--tokens", "256", "--out", str(out)]
    result = runner.invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(row.startswith("perplexity ratio ") and " to " in row for row in rows)
    assert any("2 windows of 128 tokens of tokc's evaluation text, the last 63" in row for row in rows)
    first = out.read_bytes()
    shown = runner.invoke(app, [*command, "--json"], catch_exceptions=False)
    assert out.read_bytes() == first
    assert json.loads(shown.stdout) == json.loads(first)


def test_the_report_shows_the_evaluation_and_what_each_pass_did_to_perplexity(
    artifact: Path, tmp_path: Path
) -> None:
    write(artifact)
    write_bench(artifact)
    page = tmp_path / "report.html"
    command = ["report", str(artifact), "--price", "0.20/h", "--html", str(page)]
    said = runner.invoke(app, command, catch_exceptions=False).stdout
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert "perplexity ratio 1.0240 1.0180 to 1.0300" in rows
    assert any("kv-layout" in row and row.endswith("0.0300, 0.210 21.00 → 21.20") for row in rows)
    shown = page.read_text()
    for part in ("<h2>Quality</h2>", "1.0180 to 1.0300", "21.00 → 21.20", "16 windows of 512 tokens"):
        assert part in shown


def test_inspect_shows_what_passes_did_to_the_answers(artifact: Path) -> None:
    said = runner.invoke(app, ["inspect", str(artifact)], catch_exceptions=False).stdout
    row = next(line for line in said.splitlines() if line.startswith("quantize-weights "))
    assert row.split() == ["quantize-weights", "2.4e-04", "98.9%", "0.0300,", "0.210", "21.00", "→", "21.20"]


def test_a_comparison_takes_the_evaluation_and_else_the_ledger(artifact: Path) -> None:
    write_bench(artifact)
    for written, expected in ((False, ["not measured", None]), (True, ["tokc eval, to SmolLM2.gguf", 1.024])):
        if written:
            write(artifact)
        said = runner.invoke(app, ["compare", str(artifact), "--hosted", "none", "--json"]).stdout
        (row,) = json.loads(said)["quality"]
        assert [row["basis"], row["ppl_ratio"]] == expected
    shown = runner.invoke(app, ["compare", str(artifact), "--hosted", "none"]).stdout
    assert "1.0240" in shown
