"""Perplexity and KL over windows, against transformers and torch's own losses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import tiny_folder, tiny_model
from tokc.importers import import_model
from tokc.quality.perplexity import Scores, compare, score
from tokc.quality.running import ProgramRun

COUNT, LENGTH = 3, 32
SCORED = LENGTH - LENGTH // 2 - 1


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 96, (COUNT, LENGTH))


@pytest.fixture(scope="module")
def scores(windows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Return the scores of a model beside one of other weights."""
    base = tmp_path_factory.mktemp("models")
    programs = [import_model(tiny_folder("smollm2", base / str(seed), seed=seed)) for seed in (1, 2)]
    with ProgramRun(programs[0]) as subject, ProgramRun(programs[1]) as reference:
        return score(windows, subject, reference)


def log_probabilities(seed: int, windows: np.ndarray) -> torch.Tensor:
    """Return transformers' log probabilities f64 of what follows the tokens of each second half."""
    with torch.no_grad():
        logits = tiny_model("smollm2", seed=seed)(torch.from_numpy(windows)).logits.double()
    return logits.log_softmax(-1)[:, LENGTH // 2 : -1]


def test_perplexity_is_that_of_the_cross_entropy_of_transformers(scores: Scores, windows: np.ndarray) -> None:
    targets = torch.from_numpy(windows[:, LENGTH // 2 + 1 :])
    for seed, found in ((1, scores.nll), (2, scores.reference_nll)):
        likelihoods = log_probabilities(seed, windows)
        expected = torch.nn.functional.nll_loss(likelihoods.transpose(1, 2), targets, reduction="none")
        assert scores.scored == expected.shape[1] == SCORED
        assert found == pytest.approx(expected.mean(dim=1).numpy(), abs=1e-5)
    assert scores.perplexity == pytest.approx(np.exp(scores.nll.mean()))


def test_kl_and_agreement_are_those_of_torch(scores: Scores, windows: np.ndarray) -> None:
    subject, reference = (log_probabilities(seed, windows) for seed in (1, 2))
    kl = torch.nn.functional.kl_div(subject, reference, log_target=True, reduction="none").sum(-1)
    assert scores.rows is not None
    assert scores.rows.kl == pytest.approx(kl.flatten().numpy(), abs=1e-5)
    agree = (subject.argmax(-1) == reference.argmax(-1)).flatten().numpy()
    assert (scores.rows.agree == agree).all()
    assert 0 < agree.mean() < 1


def test_a_model_beside_itself_does_not_diverge(windows: np.ndarray, tmp_path: Path) -> None:
    with ProgramRun(import_model(tiny_folder("smollm2", tmp_path / "model"))) as run:
        alone, beside = score(windows, run), score(windows, run, run)
    assert beside.rows is not None
    assert beside.rows.summary().kl_mean == 0.0
    assert alone.nll == pytest.approx(beside.nll)
    assert (beside.nll == beside.reference_nll).all()


def test_a_check_compares_every_token_that_follows_another(windows: np.ndarray) -> None:
    with torch.no_grad():
        logits = [tiny_model("smollm2", seed=seed)(torch.from_numpy(windows)).logits for seed in (2, 1)]
    found = compare(logits[0].numpy(), logits[1].numpy(), windows)
    losses = [
        torch.nn.functional.cross_entropy(
            one[:, :-1].double().flatten(0, 1), torch.from_numpy(windows[:, 1:]).flatten()
        )
        for one in logits
    ]
    assert found.reference_perplexity == pytest.approx(float(losses[0].exp()), rel=1e-6)
    assert found.perplexity == pytest.approx(float(losses[1].exp()), rel=1e-6)
    assert found.ppl_ratio == pytest.approx(found.perplexity / found.reference_perplexity)
    assert found.positions == windows.size
    assert found.mean_abs_logit_diff == pytest.approx(float((logits[0] - logits[1]).abs().mean()), rel=1e-5)


def test_only_one_window_is_asked_for_at_a_time() -> None:
    asked = []

    class Counting:
        vocab_size = 4

        def answers(self, ids: np.ndarray, first: int) -> np.ndarray:
            asked.append((len(ids), first))
            return np.zeros((len(ids) - first, 4), np.float32)

    found = score(np.zeros((2, 8), np.int64), Counting())
    assert asked == [(8, 4), (8, 4)]
    assert found.perplexity == pytest.approx(4.0)
