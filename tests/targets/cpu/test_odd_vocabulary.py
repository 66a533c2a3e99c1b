"""Logits that are scaled and capped behind a head whose rows fill no whole group."""

from pathlib import Path

import numpy as np
import pytest

from tests.targets.cpu.test_lowering import TOKENS, fresh_answers
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.quality.divergence import logits


@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_a_vocabulary_of_any_size_is_scaled_and_capped(family: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 101, "num_hidden_layers": 1, "layer_types": None}
    folder = tiny_folder(family, tmp_path / family, head_dim=32, **sizes)
    request = Request(folder, precision=precision("f32", "f32"), context=64, check=False)
    built = build(request, tmp_path / "model.tokc")
    ids = np.random.default_rng(5).integers(0, 101, TOKENS)
    found = fresh_answers(built.artifact, ids, TOKENS)
    assert found.shape[-1] == 101
    np.testing.assert_allclose(found, logits(built.program, ids)[0], atol=1e-4)
