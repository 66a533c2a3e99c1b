"""Chooses the next token of each sequence from its logits.

A choice depends on the row of logits, the request's parameters, its seed and the index of the output token,
and on nothing else of the batch. Equal values are ordered by token id, the lowest first.
"""

from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from tokc.runtime.drawing import draw_together
from tokc.runtime.executors.base import Float32s, Int32s, LogitBlocks, Logits
from tokc.runtime.penalties import PenaltyState
from tokc.runtime.sequence import Logprob, SamplingParams, Sequence

Choice = tuple[int, Logprob | None]

_UINT64 = 0xFFFF_FFFF_FFFF_FFFF
_PHILOX_WORDS = 4  # of one count
UNIFORMS = 16  # that are made at once
# A nucleus is looked for among the tokens of at least this share of the likeliest one's probability.
_NUCLEUS_CUTS = (1e-2, 1e-4, 0.0)
_SUMS_DIFFER = 1 - 1e-9  # by less than this, whatever the order of their f64 additions


def sample(
    logits: Logits,
    sequences: Items[Sequence],
    rows: Items[int],
    likeliest: Int32s | None = None,
    blocks: LogitBlocks | None = None,
) -> list[Choice]:
    """Return a token, and its log probability where asked, for each sequence; its logits are row `rows[i]`.

    Shapes: logits f32[rows, vocab]; likeliest i32[rows] and blocks, if the executor found them.
    """
    if likeliest is not None and all(sequence.params.plain_greedy for sequence in sequences):
        return [(token, None) for token in likeliest[rows].tolist()]
    drawn = {} if blocks is None else _drawn_together(np.asarray(logits), blocks, sequences, rows)
    return [
        # A row that is not looked at need not be on the host.
        (int(likeliest[row]), None)
        if likeliest is not None and sequence.params.plain_greedy
        else _choose(logits[row], sequence, drawn.get(index))
        for index, (row, sequence) in enumerate(zip(rows, sequences, strict=True))
    ]


def _drawn_together(
    logits: Float32s, blocks: LogitBlocks, sequences: Items[Sequence], rows: Items[int]
) -> dict[int, int | None]:
    """Return the tokens of the sequences, by index, that can be drawn without a look at all logits."""
    plain = [index for index, sequence in enumerate(sequences) if sequence.params.scale > 0]
    if not plain:
        return {}
    params, uniforms = [sequences[i].params for i in plain], [_uniform(sequences[i]) for i in plain]
    tokens = draw_together(logits, blocks, [rows[i] for i in plain], params, uniforms)
    return dict(zip(plain, tokens, strict=True))


def draw(logits: Float32s, params: SamplingParams, uniform: float) -> int:
    """Draw a token with temperature, then top-k, top-p and min-p; `uniform` lies in [0, 1)."""
    weights = logits - logits.max()
    weights *= np.float32(1 / params.temperature)
    np.exp(weights, out=weights)
    ids = _candidates(weights, params)
    if ids is not None:
        weights = weights[ids]
    if params.min_p > 0:
        weights = np.where(weights >= np.float32(params.min_p) * weights.max(), weights, np.float32(0))
    cumulative = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    place = min(place, len(cumulative) - 1)
    return place if ids is None else int(ids[place])


def uniform_at(seed: int, index: int) -> float:
    """Return the number in [0, 1) of output token `index`, from a counter: no state between tokens.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64).
    """
    return _uniforms(seed, index, 1)[0]


def _uniforms(seed: int, index: int, count: int) -> list[float]:
    """Return the numbers of `count` tokens from `index` on; a call costs as much as twenty of them."""
    words = np.random.Philox(key=seed & _UINT64, counter=index).random_raw(_PHILOX_WORDS * count)
    return [(word >> 11) * 2.0**-53 for word in words[::_PHILOX_WORDS].tolist()]


def _uniform(sequence: Sequence) -> float:
    """Return `uniform_at` of a sequence's next token; some ahead are made at once."""
    first, place = divmod(sequence.output_length, UNIFORMS)
    if sequence.uniforms is None or sequence.uniforms[0] != first:
        sequence.uniforms = first, _uniforms(sequence.seed, first * UNIFORMS, UNIFORMS)
    return sequence.uniforms[1][place]


def top_ids(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the indexes of the `count` largest values, largest first, the lowest index among equals."""
    count = min(count, len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    ids = np.flatnonzero(values >= threshold)
    order = np.argsort(-values[ids], kind="stable")[:count]
    return ids[order]


def log_probabilities(logits: Float32s, token: int, top: int) -> Logprob:
    """Return the natural log probability of `token` and of the `top` likeliest."""
    largest = float(logits.max())
    total = largest + float(np.log(np.exp(logits - np.float32(largest)).sum(dtype=np.float64)))
    best = top_ids(logits, top).tolist() if top else []
    return Logprob(token, float(logits[token]) - total, tuple((i, float(logits[i]) - total) for i in best))


def _choose(logits: Float32s, sequence: Sequence, drawn: int | None = None) -> Choice:
    params = sequence.params
    if drawn is not None:
        return drawn, None if params.logprobs is None else log_probabilities(logits, drawn, params.logprobs)
    scores = logits
    too_early = sequence.output_length < params.min_tokens and bool(sequence.eos_ids)
    if params.adjusts or too_early or sequence.matcher is not None:
        scores = logits.copy()
    if params.adjusts:
        _penalties(sequence).adjust(scores)
    if sequence.matcher is not None:
        sequence.matcher.mask(scores)
    if too_early:
        _hold_back(scores, list(sequence.eos_ids))
    token = int(scores.argmax()) if params.temperature == 0 else draw(scores, params, _uniform(sequence))
    if sequence.penalties is not None:
        sequence.penalties.see_output(token)
    if sequence.matcher is not None:
        sequence.matcher.accept(token)
    return token, None if params.logprobs is None else log_probabilities(logits, token, params.logprobs)


def _hold_back(scores: Float32s, ends: list[int]) -> None:
    """Rule out the tokens that end an answer, unless a grammar leaves nothing else."""
    held = scores[ends]
    scores[ends] = -np.inf
    if scores.max() == -np.inf:
        scores[ends] = held


def _penalties(sequence: Sequence) -> PenaltyState:
    if sequence.penalties is None:
        params = sequence.params
        sequence.penalties = PenaltyState(
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            bias=params.logit_bias,
        )
        sequence.penalties.see_prompt(sequence.tokens)
    return sequence.penalties


def _candidates(weights: npt.NDArray[np.float32], params: SamplingParams) -> npt.NDArray[np.int64] | None:
    """Return the ids that top-k and top-p leave, likeliest first; None for all."""
    top_k = params.top_k if params.top_k is not None and params.top_k < len(weights) else None
    if params.top_p == 1:
        return None if top_k is None else top_ids(weights, top_k)
    if top_k is not None:
        ids = top_ids(weights, top_k)
        return ids[: _nucleus_size(weights[ids], float(weights[ids].sum(dtype=np.float64)), params.top_p)]
    return _nucleus(weights, params.top_p)


def _nucleus(weights: npt.NDArray[np.float32], top_p: float) -> npt.NDArray[np.int64]:
    """Return the ids of the likeliest tokens that reach `top_p`, likeliest first; the largest weight is 1."""
    total = float(weights.sum(dtype=np.float64))
    for cut in _NUCLEUS_CUTS:
        ids = np.flatnonzero(weights >= np.float32(cut))
        if weights[ids].sum(dtype=np.float64) < top_p * total * _SUMS_DIFFER and cut > 0:
            continue
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        size = _nucleus_size(weights[ids], total, top_p)
        if size is not None:
            return ids[:size]
    return ids


def _nucleus_size(descending: npt.NDArray[np.float32], total: float, top_p: float) -> int | None:
    """Return how many of the leading weights reach `top_p` of `total`; None if all together do not."""
    cumulative = np.cumsum(descending, dtype=np.float64)
    size = int(np.searchsorted(cumulative, top_p * total, side="left")) + 1
    return size if size <= len(descending) else None
