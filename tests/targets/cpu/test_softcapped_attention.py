"""Scores that are capped before the mask: equal to numpy, and a token's bits are the same alone."""

from typing import Any

import numpy as np
import pytest

from tests.targets.cpu.test_paged_attention import CHUNKS, CONTEXT, Align, Case
from tokc.targets.cpu.isa import Isa
from tokc.targets.cpu.kernels.paged_attention import PagedAttention

CAP = 2.5


class CappedCase(Case):
    """A case whose scores are capped."""

    def expected(self) -> np.ndarray:
        """Return y in f64."""
        kernel, batch = self.kernel, self.batch
        y = np.zeros((len(self.q), kernel.heads, kernel.dim))
        for row, (position, sequence) in enumerate(zip(batch.positions, batch.sequences, strict=True)):
            k, v = self.cache.read(batch.block_tables[sequence], position + 1)
            k, v = k[-kernel.window :], v[-kernel.window :]
            q = self.q[row].reshape(kernel.kv_heads, -1, kernel.dim).astype(np.float64)
            scores = CAP * np.tanh(np.einsum("hgd,jhd->hgj", q, k) * kernel.scale / CAP)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            y[row] = np.einsum("hgj,jhd->hgd", weights, v).reshape(kernel.heads, kernel.dim)
        return y.reshape(len(self.q), -1)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_capped_scores_equal_numpy_and_do_not_depend_on_the_step(
    dtype: str, isa: Isa, load_kernels: Any, align: Align
) -> None:
    kernel = PagedAttention(isa, 4, 2, 64, 16, dtype, 0.3, 40, CONTEXT, False, True, CAP)
    library, case = load_kernels([kernel], isa), CappedCase(kernel, align, CHUNKS)
    whole = case.run(library, case.batch, case.q, 1)["y"]
    np.testing.assert_allclose(whole, case.expected(), rtol=2e-5, atol=1e-5)
    plain = np.abs(case.q).max() * 64 * 0.3
    assert plain > CAP, "scores reach the cap"
    for row in (0, 5, len(case.q) - 1):
        alone = case.run(library, case.batch.rows([row]), case.q[[row]], 1)["y"]
        assert alone.tobytes() == whole[[row]].tobytes()
