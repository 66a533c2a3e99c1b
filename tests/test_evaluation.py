"""Evaluations of tiny models and of a compiled artifact."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.reading_model import BYTES, reading_folder
from tokc.compiler import Request as BuildRequest
from tokc.compiler import build, precision
from tokc.cost.evaluation import Estimate, Evaluation
from tokc.errors import TokcError
from tokc.evaluation import Opened, Request, cut, evaluate
from tokc.task_evaluation import score_tasks

CONTEXT = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    """Return an int8 artifact of the model, not beside it."""
    out = model.parent / "elsewhere" / "tiny.tokc"
    out.parent.mkdir()
    request = BuildRequest(model, precision=precision("int8", None), context=CONTEXT, check=False)
    return build(request, out).artifact


@pytest.fixture(scope="module")
def found(artifact: Path, model: Path) -> Evaluation:
    return evaluate(Request(artifact, model, tokens=4 * CONTEXT, threads=2))


def test_an_artifact_is_near_the_model_it_was_built_from(found: Evaluation) -> None:
    assert found.tokens is not None
    assert (found.tokens.windows, found.tokens.window, found.tokens.scored) == (4, CONTEXT, CONTEXT // 2 - 1)
    assert found.divergence is not None
    assert found.notes == ()
    assert 0 < found.divergence.kl_mean.figure < found.divergence.kl_p99 < 0.1
    assert found.divergence.top1_agree.figure > 0.9
    ratio = found.divergence.ppl_ratio
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < ratio.figure < ratio.high
    assert found.perplexity is not None
    assert ratio.figure == pytest.approx(found.perplexity.figure / found.divergence.perplexity.figure)
    assert abs(ratio.figure - 1) < 0.05


def test_the_same_evaluation_says_the_same_with_another_number_of_threads(
    found: Evaluation, artifact: Path, model: Path
) -> None:
    again = evaluate(Request(artifact, model, tokens=4 * CONTEXT, threads=1))
    assert (again.perplexity, again.manifest_sha256) == (found.perplexity, found.manifest_sha256)


def test_an_artifact_alone_has_a_perplexity_and_says_what_is_missing(
    artifact: Path, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = evaluate(Request(artifact, tokens=4 * CONTEXT))
    assert alone.perplexity == found.perplexity
    assert alone.divergence is None
    assert "--reference MODEL (it was built from 'config.json'" in alone.notes[0]


def test_the_model_that_lies_beside_an_artifact_is_what_it_is_compared_with(
    artifact: Path, model: Path, found: Evaluation, tmp_path: Path
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    beside = shutil.copytree(artifact, copy / "tiny.tokc")
    again = evaluate(Request(beside, tokens=4 * CONTEXT))
    assert again.divergence is not None
    assert again.divergence.kl_mean == found.divergence.kl_mean if found.divergence else False
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"changed": True}))
    assert evaluate(Request(beside, tokens=CONTEXT)).divergence is None


def test_a_reference_of_other_weights_is_compared_and_noted(artifact: Path, tmp_path: Path) -> None:
    other = reading_folder(tmp_path / "other", seed=5)
    found = evaluate(Request(artifact, other, tokens=CONTEXT))
    assert "is not the file that this was built from" in found.notes[0]
    assert found.divergence is not None
    assert found.divergence.kl_mean.figure > 0.1
    assert found.divergence.kl_mean.low is None  # one window has no interval


def test_models_that_read_other_tokens_are_refused(artifact: Path, tmp_path: Path) -> None:
    smaller = reading_folder(tmp_path / "smaller", vocab_size=BYTES + 2)
    with pytest.raises(TokcError, match="vocabularies differ: 264 and 258 tokens"):
        evaluate(Request(artifact, smaller, tokens=CONTEXT))
    begins = reading_folder(tmp_path / "begins", bos=True)
    with pytest.raises(TokcError, match="the tokenizers differ"):
        evaluate(Request(artifact, begins, tokens=CONTEXT))


def test_a_text_of_ones_own_is_read(artifact: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sea " * 40)
    found = evaluate(Request(artifact, artifact, text, tokens=10**6))
    assert found.tokens is not None
    assert (found.tokens.text, found.tokens.windows) == (str(text), 320 // CONTEXT)
    assert found.divergence is not None
    assert found.divergence.ppl_ratio == Estimate(1.0, 1.0, 1.0)
    text.write_text("too short")
    with pytest.raises(TokcError, match="fewer than one window of 128"):
        evaluate(Request(artifact, artifact, text))


def test_a_window_begins_with_bos_where_the_tokenizer_says_so(model: Path, tmp_path: Path) -> None:
    for bos in (False, True):
        folder = reading_folder(tmp_path / str(bos), bos=bos)
        opened = Opened(None, (folder / "tokenizer.json").read_text(), BYTES, 64, {}, "here")  # type: ignore[arg-type]
        windows = cut("a text of letters " * 20, opened, 256)
        assert windows.shape == (4, 64)
        assert ((windows[:, 0] == BYTES) == bos).all()
        assert (windows[:, 1:] < BYTES).all()


def test_an_interval_holds_the_mean_it_is_of() -> None:
    values = [0.1, 0.3, 0.2, 0.4]
    found = Estimate.of(values, float)
    assert found.figure == pytest.approx(np.mean(values))
    half = 3.182 * np.std(values, ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((found.figure - half, found.figure + half))


def test_an_artifact_answers_tasks_with_its_kernels_and_its_engine(artifact: Path, model: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    compiled = score_tasks(artifact, ["tokc"], threads=2)
    assert [(one.task, one.metric, one.items) for one in compiled] == [
        ("tokc_answers", "exact_match (answer)", 26),
        ("tokc_choices", "acc", 48),
        ("tokc_choices", "acc_norm", 48),
    ]
    imported = score_tasks(model, ["tokc_choices"])
    for one, other in zip(compiled[1:], imported, strict=True):
        assert one.score.figure == pytest.approx(other.score.figure, abs=4 / 48)  # int8 moves few of 48
