"""How far one model's answers are from another's, in the words that llama.cpp made usual."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tokc.quality.running import F32 as F32
from tokc.quality.running import logits as logits

F64 = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 2  # the rows' f64 copies stay in the cache of a core, which is ten times as fast


@dataclass(frozen=True)
class Divergence:
    """Compare the next-token distributions of two models over the same positions.

    `kl_mean` and `kl_p99` are the mean and 99th percentile over positions of KL(reference || other), in
    nats; `top1_agree` is the share of positions where both find the same token likeliest ("same top p").
    """

    positions: int
    kl_mean: float
    kl_p99: float
    top1_agree: float
    max_abs_logit_diff: float
    mean_abs_logit_diff: float


class Rows(NamedTuple):
    """Hold the comparison of two models position by position; every array is [positions].

    `log_sum` and `other_log_sum` are the logarithms of the summed exponentials of each model's logits, so
    that a token's negative log likelihood is its row's `log_sum` less its logit.
    """

    kl: F64
    agree: npt.NDArray[np.bool_]
    max_abs: F64
    mean_abs: F64
    log_sum: F64
    other_log_sum: F64

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the positions of all parts, in order."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def summary(self) -> Divergence:
        """Return the figures over all positions."""
        assert len(self.kl), "no positions to compare"
        return Divergence(
            positions=len(self.kl),
            kl_mean=float(self.kl.mean()),
            kl_p99=float(np.quantile(self.kl, 0.99)),
            top1_agree=float(self.agree.mean()),
            max_abs_logit_diff=float(self.max_abs.max()),  # a NaN stays a NaN
            mean_abs_logit_diff=float(self.mean_abs.mean()),
        )


def divergence(reference: F32, other: F32) -> Divergence:
    """Compare logits [..., vocab]; the reference comes first, since KL is not symmetric."""
    return compare_rows(reference, other).summary()


def compare_rows(reference: F32, other: F32) -> Rows:
    """Compare logits [..., vocab] position by position, in f64 and a few rows at a time.

    KL(p || q) = sum p (x - y) - log_sum(x) + log_sum(y) for logits x and y; rounding may not take it below 0.
    """
    assert reference.shape == other.shape, f"logits differ in shape: {reference.shape} and {other.shape}"
    left, right = (logits.reshape(-1, logits.shape[-1]) for logits in (reference, other))
    rows = Rows(np.zeros(len(left)), left.argmax(axis=-1) == right.argmax(axis=-1), *np.zeros((4, len(left))))
    x, y, apart = np.empty((3, _ROWS_AT_ONCE, left.shape[-1]))
    for start in range(0, len(left), _ROWS_AT_ONCE):
        at = slice(start, min(start + _ROWS_AT_ONCE, len(left)))
        count = at.stop - start
        _compare(left[at], right[at], (x[:count], y[:count], apart[:count]), rows, at)
    return rows


def log_sums(logits: F32) -> F64:
    """Return the logarithm of the summed exponentials of logits [rows, vocab], in f64; [rows]."""
    found, x = np.zeros(len(logits)), np.empty((_ROWS_AT_ONCE, logits.shape[-1]))
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        part = logits[start : start + _ROWS_AT_ONCE]
        found[start : start + len(part)] = _exponentials(part, x[: len(part)])[0]
    return found


def _exponentials(logits: F32, out: F64) -> tuple[F64, F64]:
    """Write exp(logits - their largest) to `out`; return the log sums and the sums of what was written."""
    largest = logits.max(axis=-1).astype(np.float64)
    np.subtract(logits, largest[:, None], out=out)
    np.exp(out, out=out)
    total = out.sum(axis=-1)
    return largest + np.log(total), total


def _compare(left: F32, right: F32, buffers: tuple[F64, F64, F64], rows: Rows, at: slice) -> None:
    """Fill the rows `at` of the comparison."""
    x, y, apart = buffers
    np.subtract(left, right, out=apart, dtype=np.float64)
    rows.log_sum[at], total = _exponentials(left, x)
    rows.other_log_sum[at], _ = _exponentials(right, y)
    expected = np.einsum("rv,rv->r", x, apart) / total
    rows.kl[at] = np.maximum(expected - rows.log_sum[at] + rows.other_log_sum[at], 0.0)
    np.abs(apart, out=apart)
    rows.max_abs[at], rows.mean_abs[at] = apart.max(axis=-1), apart.mean(axis=-1)
