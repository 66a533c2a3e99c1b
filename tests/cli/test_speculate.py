"""`tokc build --speculate`: a draft in the artifact, and what is said where heads do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.end_to_end.test_artifact import contents
from tests.heads_of_drafts import eagle_heads, medusa_heads, saved
from tests.tiny_models import tiny_folder
from tokc.cli.app import app
from tokc.runtime.artifact import verify

runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})
SIZES = {"hidden_size": 64, "head_dim": 32, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny", **SIZES)


def build(model: Path, heads: Path, out: Path, kind: str = "medusa", *more: str) -> tuple[int, str]:
    """Run `tokc build`; return its exit code and all that it printed."""
    options = ["--speculate", kind, "--heads", str(heads), "--context", "64", "-o", str(out), *more]
    done = runner.invoke(app, ["build", str(model), *options])
    return done.exit_code, f"{done.output} {done.exception or ''}"


def test_a_draft_is_built_checked_and_shown_and_is_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    stated = {"weights_sha256": "0" * 64, "held_out_acceptance": "0.61"}
    tensors = medusa_heads(64, 3, vocabulary=np.arange(2, 96, 3))
    first = saved(tensors, tmp_path / "heads.safetensors", **stated)
    for place in ("one", "another place"):
        (tmp_path / place).mkdir()
        heads = shutil.copy(first, tmp_path / place / "my heads.safetensors")
        code, said = build(model, heads, tmp_path / place / "tiny.tokc")
        assert code == 0, said
        assert "warning: the heads 'my heads.safetensors' were trained on other weights" in said
        assert "than the 61% that held there" in " ".join(said.split())
    artifact = tmp_path / "one" / "tiny.tokc"
    ours, theirs = contents(artifact), contents(tmp_path / "another place" / "tiny.tokc")
    assert {name for name in ours if ours[name] != theirs.get(name)} == set()
    assert "draft/plan.json" in verify(artifact)
    quality = json.loads((artifact / "quality.json").read_text())
    lowered = quality["draft_ledger"][-1]
    assert (lowered["pass_spec"], lowered["kl_mean"] < 0.02) == ("lower", True)
    assert {op["op"] for op in json.loads((artifact / "cost.json").read_text())["draft"]["ops"]} > {
        "QuantLinear"
    }
    sources = [one["name"] for one in json.loads((artifact / "bom.cdx.json").read_text())["components"]]
    assert "draft/my heads.safetensors" in sources
    shown = " ".join(runner.invoke(app, ["inspect", str(artifact)]).output.split())
    assert "medusa of 3 heads over 32 tokens, from my heads.safetensors" in shown
    assert "acceptance in training 61.0%" in shown


@pytest.mark.parametrize("missing", ["--heads", "--speculate"])
def test_kind_and_heads_go_together(missing: str, model: Path) -> None:
    given = {"--speculate": "eagle", "--heads": "h.safetensors"}
    options = [text for name, value in given.items() if name != missing for text in (name, value)]
    done = runner.invoke(app, ["build", str(model), *options])
    assert done.exit_code == 2
    assert "go together" in done.output


def test_heads_that_do_not_fit_are_refused_before_anything_is_built(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.tokc"
    for heads, kind, problem in (
        (tmp_path / "missing.safetensors", "eagle", "there is no file or folder"),
        (saved(medusa_heads(64, 2), tmp_path / "m.safetensors"), "eagle", "heads are those of 'medusa'"),
        (saved(eagle_heads(96, (64, 64)), tmp_path / "e.safetensors"), "eagle", "hidden size is 96 there"),
    ):
        code, said = build(model, heads, out, kind)
        assert code == 1
        assert problem in said
        assert not out.exists()


def test_a_target_without_drafts_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    heads = saved(medusa_heads(64, 2), tmp_path / "m.safetensors")
    code, said = build(model, heads, tmp_path / "tiny.tokc", "medusa", "--target", "cuda:sm_90")
    assert code == 1
    assert "target 'cuda:sm_90' has no drafts yet" in said
