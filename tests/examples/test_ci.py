"""The examples of CI: their files are sound; the script that both run does what it says on a tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.tiny_models import tiny_folder
from tokc.cost.gates import read_gates

CI = Path(__file__).parents[2] / "examples" / "ci"
SCRIPT = CI / "build_and_gate.sh"
BENCH = "--batch 1 --prompt-tokens 16 --output-tokens 8"
REBUILD_SHARE = 0.1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama of one layer whose tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    folder = tiny_folder(
        "llama3",
        tmp_path_factory.mktemp("ci") / "tiny",
        num_hidden_layers=1,
        max_position_embeddings=256,
        vocab_size=len(letters),
    )
    vocab = {letter: index for index, letter in enumerate(letters)}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment whose `tokc` is this one and whose build cache is its own."""
    base = tmp_path_factory.mktemp("environment")
    program = base / "bin" / "tokc"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from tokc.cli.entry import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    root = str(CI.parents[1])
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": root,
        "XDG_CACHE_HOME": str(base / "cache"),
        "TOKC_BUILD_CACHE": "on",
        "BENCH_OPTIONS": BENCH,
    }


def run(
    model: Path, gates: list[str], out: Path, environment: dict[str, str], **more: str
) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    path = out / "gates.toml"
    path.write_text(f"gates = {json.dumps(gates)}\ninconclusive = 'pass'\n")
    command = ["bash", str(SCRIPT), str(model), str(path), str(out), "--dtype", "f32"]
    env = {**environment, **more}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=out)


def test_the_script_builds_gates_and_tells(model: Path, environment: dict[str, str], tmp_path: Path) -> None:
    environment = {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # other tests build the same
    met = ["size<=2MB", "kl_mean<=0.01", "tpot@1<=1s", "cost_per_mtok<=1000"]
    done = run(model, met, tmp_path / "first", environment, PRICE="0.20/h")
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "first" / "summary.md").read_text()
    assert "4 met" in summary.splitlines()[0]
    assert "### Cost of a million output tokens" in summary
    first = json.loads((tmp_path / "first" / "build.json").read_text())

    base = str(tmp_path / "first" / "model.tokc")
    failing = ["size<=1kB", "tpot@1<=1s"]
    done = run(model, failing, tmp_path / "second", environment, BASE=base, CHANGES="size<=-1%")
    assert done.returncode == 3, done.stderr
    assert "1 of 2 gates stop this: 'size<=1kB'" in done.stderr
    summary = (tmp_path / "second" / "summary.md").read_text()
    assert "❌ not met" in summary
    assert "'size<=-1%'" in done.stderr
    assert "| `size<=-1%` |" in summary
    assert "The artifacts are the same" in summary
    second = json.loads((tmp_path / "second" / "build.json").read_text())
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["seconds"] < REBUILD_SHARE * first["seconds"]

    done = run(model, ["tpot@64<=1s"], tmp_path / "second", environment)
    assert done.returncode == 1
    assert "the bench has batch 1, not 64" in (tmp_path / "second" / "summary.md").read_text()


def test_a_build_measures_what_its_gates_bound(
    model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["tokc", "build", str(model), "--out", "model.tokc", "--dtype", "f32", "--json"]

    def build(*gates: str) -> subprocess.CompletedProcess[str]:
        options = [word for gate in gates for word in ("--gate", gate)]
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    done = build("tpot@1<=1s", "peak_rss<=4GB")
    assert done.returncode == 0, done.stderr
    assert [row["verdict"] for row in json.loads(done.stdout)["gates"]] == ["met", "met"]
    assert json.loads((tmp_path / "model.bench.json").read_text())["points"][0]["batch"] == 1
    done = build("tokens_per_s@1>=1e9")
    assert done.returncode == 3
    assert json.loads(done.stdout)["cached"]
    assert build("tokens_per_sec>=1").returncode == 2
    assert build("tpot@2<=1s").returncode == 0
    points = json.loads((tmp_path / "model.bench.json").read_text())["points"]
    assert [point["batch"] for point in points] == [1, 2]  # what was measured before is measured again


def test_the_script_says_how_it_is_used(environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "MODEL GATES OUT" in done.stderr


def test_the_example_of_gates_is_read() -> None:
    assert len(read_gates(CI / "gates.toml").gates) == 5


def test_the_action_is_composite_and_its_inputs_reach_scripts_by_the_environment() -> None:
    text = (CI / "action.yml").read_text()
    action: Any = yaml.safe_load(text)
    assert action["runs"]["using"] == "composite"
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(action["inputs"])
    for step in action["runs"]["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "run" in step:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]  # what a pull request names must not become code
    assert any("build_and_gate.sh" in step.get("run", "") for step in action["runs"]["steps"])


def test_the_gitlab_job_runs_the_same_script() -> None:
    job: Any = yaml.safe_load((CI / ".gitlab-ci.yml").read_text())["tokc-gates"]
    assert any("examples/ci/build_and_gate.sh" in line for line in job["script"])
    assert job["artifacts"]["when"] == "always"
    assert (CI.parents[1] / job["variables"]["GATES"]).exists()
