"""A tiny model from its answers to heads: the loss falls, a stop changes nothing, heads fit their model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from tests.reading_model import reading_folder
from tokc.cli.app import app
from tokc.compiler import Request as Build
from tokc.compiler import build
from tokc.errors import TokcError, UnknownOption
from tokc.heads import training as loop
from tokc.heads.acceptance import acceptance, total
from tokc.heads.backbone import FeatureRun, backbone_of
from tokc.heads.distillation import read_passages
from tokc.heads.features import FeatureStore
from tokc.heads.objective import SoftCrossEntropy, loss_of
from tokc.heads.rows import row_of
from tokc.heads.train import Request, train_heads
from tokc.importers import import_model
from tokc.importers.heads import load_heads, require_fit
from tokc.targets.base import Precision, pass_list

CONTEXT, ANSWER = 128, 12
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    model = reading_folder(folder / "tiny", max_position_embeddings=CONTEXT, num_hidden_layers=1)
    passes = f"expose-features,{pass_list(Precision('f32', kv='f32'))}"
    return build(Build(model, passes=passes, check=False), folder / "tiny.tokc").artifact


@pytest.fixture(scope="module")
def asked(artifact: Path) -> Request:
    return Request(
        artifact,
        "eagle",
        artifact.parent / "eagle.safetensors",
        artifact.parent / "work",
        distilled=1500,
        draft_vocabulary=40,
        epochs=2,
        answer_tokens=ANSWER,
        held_out_prompts=2,
        threads=1,
    )


class Interrupted(Exception):
    """The end of a process."""


def test_soft_cross_entropy_is_that_of_torch_and_so_is_its_gradient() -> None:
    torch.manual_seed(1)
    x, rows = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    p = torch.softmax(torch.randn(5, 11), -1)
    expected = torch.nn.functional.cross_entropy(x @ rows.T, p)
    found = SoftCrossEntropy.apply(x, rows, p)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(3 * loss, x)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def interrupted(request: Request, begins: str) -> None:
    """Train until a message begins so."""

    def say(message: str) -> None:
        if message.startswith(begins):
            raise Interrupted

    with pytest.raises(Interrupted):
        train_heads(request, say)


def test_the_heads_fit_their_model_and_no_other(asked: Request, tmp_path: Path) -> None:
    report = train_heads(asked)
    assert report.steps > 10
    assert report.acceptance.mean_length > 1.3
    heads = load_heads(asked.out)
    assert heads.kind == "eagle"
    assert heads.vocabulary is not None
    assert len(heads.vocabulary) == 40
    assert heads.metadata["weights_sha256"]
    model = asked.model.parent / "tiny"
    require_fit(heads, import_model(model))
    with pytest.raises(TokcError, match="of another backbone: the vocabulary"):
        require_fit(heads, import_model(reading_folder(tmp_path / "other", vocab_size=272)))
    with safe_open(asked.out, "np") as file:
        assert file.metadata() == dict(heads.metadata)
        assert file.get_tensor("layers.0.self_attn.o_proj.weight").any()


def test_the_card_states_the_figures_and_how_to_use_them(asked: Request) -> None:
    report = train_heads(asked)
    text = asked.out.with_suffix(".md").read_text()
    assert f"| all | {report.acceptance.mean_length:.2f} |" in text
    assert f"{report.answer_tokens:,} tokens to be predicted" in text
    assert "PSF License Agreement" in text
    assert "--speculate eagle --heads eagle.safetensors" in text


def test_interrupted_anywhere_and_begun_again_the_same_heads_are_written(
    asked: Request, tmp_path: Path
) -> None:
    train_heads(asked)
    again = replace(asked, work=tmp_path / "work", out=tmp_path / "again.safetensors")
    for moment in ("answers: 1,500", "features:", "held-out:"):
        interrupted(again, moment)
        assert not again.out.exists()
    interrupted(again, "step 9 ")
    train_heads(again)
    assert again.out.read_bytes() == asked.out.read_bytes()
    assert not list(again.work.glob("*.partial*"))


def test_medusa_goes_on_from_the_same_answers(asked: Request) -> None:
    train_heads(asked)
    said: list[str] = []
    before = {path.name: path.stat().st_mtime_ns for path in asked.work.glob("*.np?")}
    medusa = replace(asked, kind="medusa", out=asked.out.with_name("medusa.safetensors"))
    report = train_heads(medusa, said.append)
    assert {path.name: path.stat().st_mtime_ns for path in asked.work.glob("*.np?")} == before
    assert report.steps > 10
    heads = load_heads(medusa.out)
    assert (heads.kind, heads.heads) == ("medusa", 4)


def test_training_ends_when_held_out_acceptance_no_longer_grows(
    asked: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LEARNING_RATES", {"eagle": 0.0})
    work = tmp_path / "work"
    work.mkdir()
    for path in [*asked.work.glob("*.np?"), *asked.work.glob("text.json")]:  # what another test made already
        (work / path.name).hardlink_to(path)
    report = train_heads(replace(asked, work=work, out=tmp_path / "still.safetensors", epochs=9))
    assert report.stopped_early
    assert len(report.points) == loop.PATIENCE + 1
    assert len({point.mean_length for point in report.points}) == 1


@pytest.mark.parametrize("kind", loop.KINDS)
def test_the_loss_falls(asked: Request, kind: loop.Kind, tmp_path: Path) -> None:
    train_heads(replace(asked, kind=kind, out=tmp_path / "heads.safetensors"))
    backbone, vocabulary = backbone_of(asked.model), load_heads(tmp_path / "heads.safetensors").vocabulary
    passages = [one for path in sorted(asked.work.glob("training-0*.npz")) for one in read_passages(path)]
    examples = FeatureStore(asked.work, lambda: FeatureRun(asked.model)).examples(
        "training-features", passages
    )
    assert vocabulary is not None
    plan = loop.Plan(kind, asked.epochs)
    losses = []
    for checkpoint in (tmp_path / "none.pt", asked.work / f"{kind}.pt"):
        run = loop.Training(plan, backbone, vocabulary.astype(np.int64), examples, checkpoint)
        row = row_of(examples[:4], run.embedding, plan.steps)
        losses.append(float(loss_of(run.module, row, run.rows, plan.steps, 0.0).detach()))
    assert losses[1] < losses[0]


def test_what_training_reports_is_what_the_heads_in_the_file_do(asked: Request) -> None:
    report = train_heads(asked)
    backbone, heads = backbone_of(asked.model), load_heads(asked.out)
    module = loop.module_of("eagle", backbone)
    with safe_open(asked.out, "pt") as file:
        module.load_state_dict({name: file.get_tensor(name) for name in module.state_dict()})
    assert heads.vocabulary is not None
    tokens = torch.from_numpy(heads.vocabulary.astype(np.int64))
    store = FeatureStore(asked.work, lambda: FeatureRun(asked.model))
    found = acceptance(
        module,
        store.examples("held-out-features", read_passages(asked.work / "held-out-00000.npz")),
        embedding=torch.from_numpy(backbone.embedding),
        rows=torch.from_numpy(backbone.head)[tokens],
        tokens=tokens,
        depth=loop.EVALUATED["eagle"],
    )
    assert total(found) == report.acceptance


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 1}, "the answers there were made with seed '0', not '1'"),
        ({"epochs": 5}, "a training was begun there with epochs '2', not '5'"),
        ({"draft_vocabulary": 41}, "a training was begun there with vocabulary"),
    ],
)
def test_a_folder_of_other_heads_is_not_gone_on_from(
    asked: Request, change: dict[str, int], problem: str
) -> None:
    train_heads(asked)
    with pytest.raises(TokcError, match=problem):
        train_heads(replace(asked, **change))


@pytest.mark.slow
def test_an_artifact_without_features_is_refused_with_the_passes_to_build_it(
    artifact: Path, asked: Request, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.tokc"
    build(Build(artifact.parent / "tiny", passes=pass_list(Precision("f32", kv="f32")), check=False), bare)
    with pytest.raises(TokcError, match="does not give out its features") as refused:
        train_heads(replace(asked, model=bare, work=tmp_path / "work"))
    assert "--passes 'expose-features,fold-constants" in str(refused.value)


def test_a_text_of_ones_own_is_trained_on_and_too_short_a_one_refused(asked: Request, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("abc " * 400)
    given = replace(asked, kind="medusa", text=text, work=tmp_path / "work", out=tmp_path / "m.safetensors")
    report = train_heads(replace(given, epochs=1))
    assert report.texts == 1600 // CONTEXT
    assert "the file 'own.txt'" in given.out.with_suffix(".md").read_text()
    text.write_text("abc")
    with pytest.raises(TokcError, match="the text has 3 tokens, fewer than one window of 128"):
        train_heads(replace(given, work=tmp_path / "other"))


def test_the_command_gives_figures_as_json_and_refuses_unknown_kinds(
    asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = train_heads(asked)
    monkeypatch.setattr("tokc.heads.train.train_heads", lambda *_: report)
    runner = CliRunner()
    found = runner.invoke(app, ["train-heads", str(asked.model), "--kind", "eagle", "--json"])
    assert found.exit_code == 0
    assert json.loads(found.stdout)["mean_length"] == report.acceptance.mean_length
    refused = runner.invoke(app, ["train-heads", str(asked.model), "--kind", "lookahead"])
    assert isinstance(refused.exception, UnknownOption)
    assert "choose from eagle, medusa" in str(refused.exception)
