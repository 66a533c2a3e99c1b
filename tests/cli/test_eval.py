"""`tokc eval` through the command line, and what gates, reports and comparisons make of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.reading_model import reading_folder
from tests.report.sample import write_artifact
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
