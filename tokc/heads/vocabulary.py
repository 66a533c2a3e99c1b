"""The tokens that a draft can name: the most frequent of the text that the model writes.

The projection onto the vocabulary is most of a small draft's work. Source: Zhao et al. 2025, FR-Spec,
arXiv:2502.14856, sec. 3; the stored form is that of EAGLE-3's checkpoints: token = id + d2t[id].
"""

from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from tokc.heads.distillation import Passage

Int64s = npt.NDArray[np.int64]


def draft_vocabulary(passages: Items[Passage], size: int, vocab: int) -> Int64s:
    """Return the `size` most frequent tokens of the answers in ascending order, all if there are no more.

    Of tokens that are equally frequent the lower ids are taken.
    """
    counts = np.zeros(vocab, np.int64)
    for passage in passages:
        counts += np.bincount(passage.tokens[passage.answer :], minlength=vocab)
    chosen = np.argsort(-counts, kind="stable")[: min(size, vocab)]
    return np.sort(chosen)


def coverage(passages: Items[Passage], tokens: Int64s) -> float:
    """Return the share of the answers' tokens that are among `tokens`."""
    answers = np.concatenate([passage.tokens[passage.answer :] for passage in passages])
    return float(np.isin(answers, tokens).mean())
