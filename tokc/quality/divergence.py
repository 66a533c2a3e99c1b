"""How far one model's answers are from another's, in the words that llama.cpp made usual."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tokc.ir.execute import Array, Session
from tokc.ir.program import Program

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 256


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


def divergence(reference: F32, other: F32) -> Divergence:
    """Compare logits [..., vocab]; the reference comes first, since KL is not symmetric.

    Computed in f64 and in blocks of rows, so that a long text over a large vocabulary fits in memory.
    """
    assert reference.shape == other.shape, f"logits differ in shape: {reference.shape} and {other.shape}"
    left, right = (logits.reshape(-1, logits.shape[-1]) for logits in (reference, other))
    assert len(left), "no positions to compare"
    kl, largest, agree = [], 0.0, 0
    for start in range(0, len(left), _ROWS_AT_ONCE):
        p, q = (logits[start : start + _ROWS_AT_ONCE].astype(np.float64) for logits in (left, right))
        kl.append(_kl(p, q))
        largest = float(np.maximum(largest, np.abs(p - q).max()))  # a NaN stays a NaN
        agree += int((p.argmax(axis=-1) == q.argmax(axis=-1)).sum())
    every = np.concatenate(kl)
    return Divergence(
        positions=len(left),
        kl_mean=float(every.mean()),
        kl_p99=float(np.quantile(every, 0.99)),
        top1_agree=agree / len(left),
        max_abs_logit_diff=largest,
    )


def _kl(p: F64, q: F64) -> F64:
    """Return KL(softmax(p) || softmax(q)) a row; rounding may not take it below zero."""
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    kl: F64 = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return np.maximum(kl, np.float64(0.0))


def _log_softmax(logits: F64) -> F64:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: F64 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def logits(program: Program, token_ids: npt.ArrayLike, *, cached_from: int | None = None) -> F32:
    """Run a program over token ids [sequences, tokens] in onnxruntime; logits are [sequences, tokens, vocab].

    Both forms answer alike. The tokens from `cached_from` on run one at a time over the cache of those
    before, as decoding does; None runs all tokens in one step.
    """
    ids = np.atleast_2d(np.asarray(token_ids, np.int64))
    assert ids.size, "no tokens to run"
    state = _Dense(program) if program.form == "batch" else _Paged(program, *ids.shape)
    first = ids.shape[1] if cached_from is None else cached_from
    cuts = [0, *([first] if first else []), *range(first + 1, ids.shape[1] + 1)]
    parts = []
    with Session(program) as session:
        for start, end in pairwise(cuts):
            answer = session.run(state.feeds(ids[:, start:end], start))
            state.keep(answer)
            parts.append(answer["logits"].reshape(ids.shape[0], end - start, -1))
    return np.concatenate(parts, axis=1)


class _Dense:
    """Hold the cache of a batch program between steps."""

    def __init__(self, program: Program) -> None:
        self.past: dict[str, Array] = {}
        self.names = [str(value.name) for value in program.graph.inputs[2:]]
        self.shape = (program.config.kv_heads, 0, program.config.head_dim)

    def feeds(self, ids: Array, start: int) -> dict[str, Array]:
        """Return the inputs of a step over `ids` [sequences, tokens], which begin at position `start`."""
        if not self.past:
            self.past = {name: np.zeros((len(ids), *self.shape), np.float32) for name in self.names}
        positions = np.broadcast_to(np.arange(start, start + ids.shape[1]), ids.shape)
        return {"input_ids": ids, "position_ids": np.ascontiguousarray(positions), **self.past}

    def keep(self, answer: Mapping[str, Array]) -> None:
        """Take over the cache that a step returned."""
        self.past = {name: answer[name.replace("past_key_values", "present")] for name in self.names}


class _Paged:
    """Hold the pages of a ragged program between steps.

    Pages lie backwards and in turns, so that a program that ignores the block tables is found out, and hold
    what is not zero, so that one that reads ahead is.
    """

    def __init__(self, program: Program, sequences: int, tokens: int) -> None:
        assert program.kv is not None, "a ragged program has a cache layout"
        blocks = -(-tokens // program.kv.page)
        pages = np.arange(sequences * blocks)[::-1]
        self.block_tables = np.ascontiguousarray(pages.reshape(blocks, sequences).T.astype(np.int64))
        self.caches: dict[str, Array] = {}
        for value in program.graph.inputs[5:]:
            assert value.dtype is not None, f"'{value.name}' has no type"
            assert value.shape is not None, f"'{value.name}' has no shape"
            shape = (pages.size, *(size for size in tuple(value.shape) if isinstance(size, int)))
            self.caches[str(value.name)] = np.full(shape, 1, value.dtype.numpy())

    def feeds(self, ids: Array, start: int) -> dict[str, Array]:
        """Return the inputs of a step over `ids` [sequences, tokens], which begin at position `start`."""
        sequences, tokens = ids.shape
        return {
            "input_ids": ids.reshape(-1),
            "positions": np.tile(np.arange(start, start + tokens), sequences),
            "sequences": np.repeat(np.arange(sequences), tokens),
            "block_tables": self.block_tables,
            "logit_rows": np.arange(ids.size),
            **self.caches,
        }

    def keep(self, answer: Mapping[str, Array]) -> None:
        """Take over the pages that a step returned."""
        self.caches = {name: answer[f"{name}.out"] for name in self.caches}
