"""Perplexity and divergence over windows of a text, one window's logits at a time.

Convention of `score`: that of llama.cpp's `llama-perplexity`. A window of 512 tokens is read with an empty
cache; its first half is context only, and each token after it is predicted from all before it. Where the
tokenizer begins a text with a BOS token, the first token of each window is replaced by it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tokc.quality.divergence import F32, F64, Divergence, Rows, compare_rows, log_sums

I64 = npt.NDArray[np.int64]

WINDOW = 512


class Answers(Protocol):
    """Answer windows; what a model is to an evaluation."""

    vocab_size: int

    def answers(self, ids: I64, first: int) -> F32:
        """Return logits [tokens - first, vocab] of the tokens from `first` on of one window, ids [tokens]."""
        ...


@dataclass(frozen=True)
class Scores:
    """What windows said of a model: mean negative log likelihood of each window's tokens, nats; [windows].

    `reference_nll` and `rows` are those of the model that it was compared with, None without one; `rows`
    holds the comparison of every position, `scored` a window.
    """

    scored: int
    nll: F64
    reference_nll: F64 | None = None
    rows: Rows | None = None

    @property
    def perplexity(self) -> float:
        """Return the perplexity over all tokens that were scored."""
        return float(np.exp(self.nll.mean()))


def score(
    windows: I64,
    subject: Answers,
    reference: Answers | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Scores:
    """Score a model over windows [windows, tokens], beside a reference if there is one.

    Only one window's logits of each model are in memory at a time.
    """
    count, length = windows.shape
    assert length > 1, "a window of one token predicts nothing"
    first, targets = length // 2, windows[:, length // 2 + 1 :]
    scored = targets.shape[1]
    nll, reference_nll, parts = np.zeros(count), np.zeros(count), []
    for index, ids in enumerate(windows):
        progress(f"window {index + 1} of {count}")
        at = np.arange(scored), targets[index]
        own = subject.answers(ids, first)[:-1]
        if reference is None:
            nll[index] = (log_sums(own) - own[at]).mean()
            continue
        other = reference.answers(ids, first)[:-1]
        rows = compare_rows(other, own)
        nll[index] = (rows.other_log_sum - own[at]).mean()
        reference_nll[index] = (rows.log_sum - other[at]).mean()
        parts.append(rows)
    if reference is None:
        return Scores(scored, nll)
    return Scores(scored, nll, reference_nll, Rows.joined(parts))


@dataclass(frozen=True)
class Comparison(Divergence):
    """Add to a divergence the perplexity of both models over the same tokens, and the ratio of the two."""

    reference_perplexity: float
    perplexity: float
    ppl_ratio: float


def compare(reference: F32, other: F32, ids: I64) -> Comparison:
    """Compare logits [sequences, tokens, vocab] of ids [sequences, tokens]; the reference comes first.

    Every token but the first of a sequence is predicted, from as few tokens as there are before it.
    """
    rows = compare_rows(reference, other)
    before = _mean_nll(reference, rows.log_sum, ids)
    after = _mean_nll(other, rows.other_log_sum, ids)
    perplexities = float(np.exp(before)), float(np.exp(after))
    return Comparison(
        **vars(rows.summary()),
        reference_perplexity=perplexities[0],
        perplexity=perplexities[1],
        ppl_ratio=float(np.exp(after - before)),
    )


def _mean_nll(logits: F32, log_sum: F64, ids: I64) -> float:
    """Return the mean negative log likelihood of what follows each token but the last, nats."""
    targets = ids[:, 1:, None]
    found = np.take_along_axis(logits[:, :-1], targets, axis=-1)[..., 0]
    return float((log_sum.reshape(ids.shape)[:, :-1] - found).mean())
