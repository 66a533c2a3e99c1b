"""The choice of a token against numpy's."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.targets.gpu.interpreted import info, interpret
from tokc.targets.gpu.kernels.sampling import ArgMax


def chosen(logits: npt.NDArray[np.float32], vocab: int, rows: int) -> npt.NDArray[np.int32]:
    tokens = np.full(len(logits), -7, np.int32)
    kernel = ArgMax(vocab, logits.shape[1])
    interpret(kernel, {"logits": logits, "info": info(rows=rows), "tokens": tokens}, {"rows": len(logits)})
    return tokens


@pytest.mark.parametrize("vocab", [5, 4096, 9001])
def test_the_largest_logit_within_the_vocabulary_is_chosen(vocab: int) -> None:
    logits = np.random.default_rng(vocab).normal(0, 3, (4, vocab + 3)).astype(np.float32)
    logits[:, vocab:] = 100
    found = chosen(logits, vocab, 3)
    np.testing.assert_array_equal(found, [*logits[:3, :vocab].argmax(1), -7])


def test_of_equal_logits_the_first_is_chosen_wherever_they_lie() -> None:
    logits = np.zeros((4, 9000), np.float32)
    logits[0, [8999, 4100, 8196]] = 2
    logits[1, [4097, 2]] = 1
    logits[2, 1:] = -1
    logits[3] = -np.inf
    np.testing.assert_array_equal(chosen(logits, 9000, 4), [4100, 2, 0, 0])


def test_nan_is_never_chosen() -> None:
    logits = np.full((2, 50), np.nan, np.float32)
    logits[0, 31] = -5
    np.testing.assert_array_equal(chosen(logits, 50, 2), [31, 0])
