import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.report.sample import PIPELINE, write_artifact, write_bench
from tests.runtime.small_artifact import WEIGHT_BYTES, write_small_artifact
from tokc.artifact.writer import Tensor, write_safetensors
from tokc.cli.app import app
from tokc.cost.gates import parse_change
from tokc.cost.intervals import Ratio
from tokc.cost.paired import PairedFigure
from tokc.cost.spread import Spread
from tokc.errors import ArtifactRefused, GateNotMet, TokcError, UnknownOption
from tokc.report import diff_text
from tokc.report.change_figures import judge_changes
from tokc.report.diff import Diff, TensorStorage, diff, stored_tensors

runner = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "before")


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "after")


def change_manifest(artifact: Path, **changes: object) -> None:
    path = artifact / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_plan(artifact: Path, *launched: str) -> None:
    kernels = sorted(set(launched))
    launches = [{"kernel": kernels.index(name)} for name in launched]
    (artifact / "plan.json").write_text(json.dumps({"kernels": kernels, "launches": launches}))


def write_weights(artifact: Path, **sizes: int) -> None:
    import numpy as np

    tensors = [
        Tensor(name, "u8", (size,), size, lambda size=size: np.zeros(size, np.uint8))
        for name, size in sizes.items()
    ]
    write_safetensors(artifact / "model.safetensors", tensors)


def shown(found: Diff) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(diff_text.terminal(found))
    return out.getvalue()


def test_an_artifact_is_the_same_as_its_copy(before: Path, after: Path) -> None:
    found = diff(before, after)
    assert found.same
    assert found.facts == found.passes == found.tensors == found.files == found.launches == ()
    assert "The artifacts are the same" in shown(found)


def test_an_option_of_a_pass_is_one_change(before: Path, after: Path) -> None:
    changed = PIPELINE.replace("bits=4 group=32", "bits=8 group=32").replace("fuse-qkv,", "")
    change_manifest(after, pipeline=f"{changed},eliminate-dead-code")
    found = {one.what: (one.before, one.after) for one in diff(before, after).passes}
    assert found == {
        "fuse-qkv": ("fuse-qkv", None),
        "quantize-weights": (
            "quantize-weights{bits=4 group=32}",
            "quantize-weights{bits=8 group=32}",
        ),
        "eliminate-dead-code": (None, "eliminate-dead-code"),
    }


def test_facts_have_dotted_names(before: Path, after: Path) -> None:
    limits = {**json.loads((after / "manifest.json").read_text())["limits"], "context": 4096}
    change_manifest(after, limits=limits, licence=None)
    found = {one.what: (one.before, one.after) for one in diff(before, after).facts}
    assert found == {"limits.context": ("2048", "4096"), "licence": ("apache-2.0", "not stated")}


def test_tensors_are_compared_by_their_storage(before: Path, after: Path) -> None:
    write_weights(before, **{"layers.0.w": 640, "layers.1.w": 640, "gone": 64, "same": 64})
    write_weights(after, **{"layers.0.w": 320, "layers.1.w": 320, "same": 64, "new": 128})
    found = diff(before, after)
    assert [one.name for one in found.tensors] == ["layers.0.w", "layers.1.w", "gone", "new"]
    assert found.tensors[0].after == TensorStorage("U8", (320,), 320)
    assert found.tensors[3].before is None
    row = next(line for line in diff_text.markdown(found).splitlines() if "layers.*.w" in line)
    assert row == "| layers.*.w | 2 | U8[640] 640 B | U8[320] 320 B | -640 B |"


def test_padding_is_no_tensor(tmp_path: Path) -> None:
    artifact = write_small_artifact(tmp_path / "a.tokc")
    stored = stored_tensors(artifact / "model.safetensors")
    assert {name: one.bytes for name, one in stored.items()} == {"first": WEIGHT_BYTES - 8, "second": 64}


@pytest.mark.parametrize(
    "content", [b"", b"\x10" + b"\0" * 7 + b"{", b"\xff" * 16, b"\2" + b"\0" * 7 + b"[]"]
)
def test_a_damaged_header_is_refused(before: Path, after: Path, content: bytes) -> None:
    (after / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactRefused, match="header is wrong"):
        diff(before, after)


def test_launches_are_counted_by_kernel(before: Path, after: Path) -> None:
    write_plan(before, "norm", "linear", "linear")
    write_plan(after, "norm", "linear", "attention", "attention", "attention")
    found = {one.what: (one.before, one.after) for one in diff(before, after).launches}
    assert found == {"launches of a step": (3, 5), "linear": (2, 1), "attention": (0, 3)}
    (after / "plan.json").write_text("{}")
    with pytest.raises(ArtifactRefused, match="the plan is damaged"):
        diff(before, after)


def test_predicted_bytes_are_of_the_whole_step_and_of_the_ops_that_differ(before: Path, after: Path) -> None:
    work = json.loads((after / "cost.json").read_text())
    work["decode"]["ops"][0]["bytes"] *= 2
    (after / "cost.json").write_text(json.dumps(work))
    found = {one.what: one for one in diff(before, after).figures}
    assert found["decode bytes of QuantLinear"].ratio == pytest.approx(2)
    assert found["decode bytes"].ratio == pytest.approx(1 + 8.62e7 / (found["decode bytes"].before or 0))
    assert "prefill bytes of QuantLinear" not in found


def test_benches_that_were_run_apart_tell_noise_from_change(before: Path, after: Path) -> None:
    write_bench(before)
    bench = write_bench(after)
    value = json.loads(bench.read_text())
    for figure in ("median", "least", "greatest"):
        value["points"][0]["tpot_s"][figure] *= 2
        value["points"][1]["tpot_s"][figure] *= 1.01
    for point in value["points"]:
        for spread in ("ttft_s", "tpot_s", "tokens_per_s", "prefill_tokens_per_s"):
            point[spread]["mean"] = point[spread]["deviation"] = None
    bench.write_text(json.dumps(value))
    found = {one.what: one for one in diff(before, after).bench or ()}
    assert (found["tpot@1"].conclusive, found["tpot@8"].conclusive) == (True, False)
    assert found["tpot@1"].ratio == pytest.approx(2)
    assert "within noise" in shown(diff(before, after))


def test_benches_of_different_machines_say_so(before: Path, after: Path) -> None:
    write_bench(before)
    bench = write_bench(after)
    bench.write_text(bench.read_text().replace("AMD EPYC 9R14", "Neoverse V1"))
    assert "measured on different machines" in (diff(before, after).bench_note or "")


def test_without_benches_it_says_how_to_measure(before: Path, after: Path) -> None:
    found = diff(before, after)
    assert found.bench is None
    assert "tokc diff --measure" in (found.bench_note or "")


def test_the_command_prints_json_and_markdown(before: Path, after: Path) -> None:
    change_manifest(after, pipeline=PIPELINE.replace("bits=4", "bits=8"))
    asked = ["diff", str(before), str(after)]
    assert (
        json.loads(runner.invoke(app, [*asked, "--json"]).stdout)["passes"][0]["what"] == "quantize-weights"
    )
    said = runner.invoke(app, [*asked, "--markdown"]).stdout
    assert said.startswith("### ")
    assert "**Passes**" in said
    missing = runner.invoke(app, ["diff", str(before), str(before.parent)])
    assert isinstance(missing.exception, TokcError)


def test_a_gate_on_a_counted_change(before: Path, after: Path) -> None:
    files = json.loads((after / "manifest.json").read_text())["files"]
    files["model.safetensors"]["bytes"] = round(87_400_000 * 1.1)
    change_manifest(after, files=files)
    asked = ["diff", str(before), str(after), "--gate"]
    assert runner.invoke(app, [*asked, "weight_bytes<=+11%"]).exit_code == 0
    result = runner.invoke(app, [*asked, "weight_bytes<=+3%"])
    assert isinstance(result.exception, GateNotMet)
    row = next(line for line in result.stdout.splitlines() if line.startswith("weight_bytes<=+3%"))
    assert row.split()[-6:] == ["+10.0%", "–", "+3.0%", "+6.8%", "not", "met"]
    judged = json.loads(runner.invoke(app, [*asked, "weight_bytes<=+3%", "--json"]).stdout)["gates"]
    assert judged[0]["figure"] == pytest.approx(1.1)


def test_a_gate_on_a_measured_change_is_judged_by_the_pairs(before: Path, after: Path) -> None:
    def paired(low: float, high: float) -> PairedFigure:
        spread = Spread.of([1.0, 1.1, 1.2])
        return PairedFigure("tpot", "s", 1, spread, spread, Ratio((low + high) / 2, low, high, 6))

    gate = (parse_change("tpot@1<=+5%"),)
    found = diff(before, after)
    verdicts = [
        judge_changes(gate, replace(found, paired=(paired(low, high),)))[0].verdict
        for low, high in ((0.98, 1.02), (0.98, 1.12), (1.08, 1.12))
    ]
    assert verdicts == ["met", "inconclusive", "not met"]
    with pytest.raises(TokcError, match="was not measured at batch 1"):
        judge_changes(gate, found)
    with pytest.raises(TokcError, match="the change of 'kl_mean' is not known"):
        judge_changes((parse_change("kl_mean<=+5%"),), found)


@pytest.mark.parametrize(
    "text", ["tpot<=3%", "tpot<=5ms", "peak_rss<=+3%", "tpot<=-100%", "tpop<=+3%", "tpot=+3%"]
)
def test_a_change_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UnknownOption):
        parse_change(text)
