"""`tokc bench --profile` over a tiny model's real artifact."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import validate
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.compiler import Request, build
from tokc.errors import TokcError, UnknownOption

runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})
SCHEMA = Path("docs/reference/report.schema.json")
CONTEXT, WINDOW, LAYERS = 128, 6, 3
LOAD = ["--prompt-tokens", "24", "--output-tokens", "8", "--threads", "2"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of three layers that attend to a window of 6 tokens."""
    base = tmp_path_factory.mktemp("profiled")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    folder = tiny_folder("mistral", base / "mistral", head_dim=32, vocab_size=len(letters))
    vocab = {letter: index for index, letter in enumerate(letters)}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(folder / "tokenizer.json"))
    return build(Request(folder, context=CONTEXT, check=False), base / "tiny.tokc").artifact


def bench(artifact: Path, *options: str) -> Any:
    result = runner.invoke(app, ["bench", str(artifact), *LOAD, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def profile(artifact: Path) -> Any:
    """Return the profile that the bench printed as JSON."""
    printed = bench(
        artifact, "--profile", "--batch", "1", "--batch", "4", "--context", "40", "--chunk", "32", "--json"
    )
    return json.loads(printed.stdout)["profile"]


def test_each_batch_and_a_chunk_are_profiled(profile: Any) -> None:
    sizes = [(step["step"], step["sequences"], step["tokens"], step["context"]) for step in profile["steps"]]
    assert sizes == [("decode", 1, 1, 40), ("decode", 4, 4, 40), ("prefill", 1, 32, 32)]
    assert profile["threads"] == 2
    assert [name for name, rate in profile["roofs"].items() if rate <= 0] == ["link_bytes_per_s"]


def test_every_launch_of_the_plan_is_in_a_row(profile: Any, artifact: Path) -> None:
    plan = json.loads((artifact / "plan.json").read_text())
    for step in profile["steps"]:
        assert sum(kernel["launches"] for kernel in step["kernels"]) == len(plan["launches"])
        assert {kernel["kernel"] for kernel in step["kernels"]} == {
            plan["kernels"][launch["kernel"]] for launch in plan["launches"]
        }


def test_the_parts_make_up_the_step(profile: Any) -> None:
    for step in profile["steps"]:
        assert all(kernel["kernel_s"] > 0 for kernel in step["kernels"])
        assert all(kernel["barrier_s"] >= 0 for kernel in step["kernels"])
        assert sum(kernel["share"] for kernel in step["kernels"]) == pytest.approx(1, abs=0.2)
        assert step["kernels_s"] + step["barriers_s"] < step["profiled_s"]["greatest"]
        assert step["step_s"]["least"] <= step["step_s"]["median"] <= step["step_s"]["greatest"]
        assert step["edges_s"] > 0
        assert (step["engine_s"] is None) == (step["step"] == "prefill")


def test_work_is_counted_for_the_step_that_ran(profile: Any) -> None:
    one, four, chunk = ({k["op"]: k["work"] for k in step["kernels"]} for step in profile["steps"])
    pair = 4 * 4 * 32 * LAYERS  # FLOPs of a token that attends to one: 4 heads of 32
    assert one["PagedAttention"]["flops"] == WINDOW * pair
    assert four["PagedAttention"]["flops"] == 4 * WINDOW * pair
    assert chunk["PagedAttention"]["flops"] == (sum(range(1, WINDOW)) + (32 - WINDOW + 1) * WINDOW) * pair
    assert four["PagedAttention"]["memory_bytes"] == 4 * one["PagedAttention"]["memory_bytes"]
    down = [[k["work"] for k in step["kernels"] if k["op"] == "QuantLinear"] for step in profile["steps"][:2]]
    for alone, together in zip(*down, strict=True):
        assert together["flops"] == 4 * alone["flops"]
        assert together["memory_bytes"] == alone["memory_bytes"] < together["bytes"]
        assert alone["arithmetic"] == "int8"


def test_the_table_the_picture_and_the_report_show_it(artifact: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "roofline.svg", tmp_path / "report.html"
    shown = bench(artifact, "--profile", "--batch", "2", "--svg", str(picture)).stdout
    for part in (
        "Decode, batch 2, 28 tokens of context",
        "PagedAttention",
        "waiting at barriers",
        "outside the step",
    ):
        assert part in shown
    ElementTree.fromstring(picture.read_text())  # noqa: S314 - it was made here
    report = runner.invoke(app, ["report", str(artifact), "--price", "1/h", "--html", str(page), "--json"])
    assert report.exit_code == 0, report.output
    assert "<h2>Kernels</h2>" in page.read_text()
    validate(json.loads(report.stdout), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--context", "128"], "144 tokens of context exceed the limit of 128"),
        (["--chunk", "129"], "129 tokens of a prefill chunk exceed the limit of 128"),
        (["--batch", "65"], "65 requests at once exceed the limit of 64"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_timed(
    artifact: Path, options: list[str], problem: str
) -> None:
    result = runner.invoke(app, ["bench", str(artifact), *LOAD, "--profile", *options])
    assert isinstance(result.exception, TokcError)
    assert problem in str(result.exception)


@pytest.mark.parametrize("option", [["--context", "8"], ["--chunk", "8"], ["--svg", "x.svg"]])
def test_options_of_a_profile_need_one(artifact: Path, option: list[str]) -> None:
    result = runner.invoke(app, ["bench", str(artifact), *option])
    assert result.exit_code == 2
    assert "add --profile" in result.output


@pytest.mark.parametrize("command", ["bench", "load-test"])
def test_an_artifact_of_another_machine_is_not_measured_here(
    artifact: Path, tmp_path: Path, command: str
) -> None:
    other = tmp_path / "other.tokc"
    shutil.copytree(artifact, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(
        json.dumps(manifest | {"target": manifest["target"] | {"arch": "riscv64"}})
    )
    result = runner.invoke(app, [command, str(other)])
    assert isinstance(result.exception, UnknownOption), result.output
    assert "riscv64" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
