"""Runs a program over tokens in onnxruntime, with the cache of either form kept between steps."""

from collections.abc import Mapping
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tokc.ir.execute import Array, Session
from tokc.ir.head import FEATURES
from tokc.ir.program import Program
from tokc.ir.verify import TREE_INPUTS

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def logits(program: Program, token_ids: npt.ArrayLike, *, cached_from: int | None = None) -> F32:
    """Run a program over token ids [sequences, tokens] in onnxruntime; logits are [sequences, tokens, vocab].

    Both forms answer alike. The tokens from `cached_from` on run one at a time over the cache of those
    before, as decoding does; None runs all tokens in one step.
    """
    ids = np.atleast_2d(np.asarray(token_ids, np.int64))
    assert ids.size, "no tokens to run"
    with ProgramRun(program, keep_memory=False) as run:
        return run.logits(ids, cached_from=cached_from)


class ProgramRun:
    """Hold a program ready to answer, window after window; each starts with an empty cache."""

    def __init__(self, program: Program, *, threads: int = 2, keep_memory: bool = True) -> None:
        """Prepare a program; `keep_memory` is that of `Session`."""
        self.program = program
        self.vocab_size = program.config.vocab
        self._session = Session(program, threads, keep_memory=keep_memory)

    def logits(self, ids: I64, *, cached_from: int | None = None) -> F32:
        """Return logits [sequences, tokens, vocab] of token ids [sequences, tokens]; see `logits`."""
        state = _state(self.program, ids)
        first = ids.shape[1] if cached_from is None else cached_from
        cuts = [0, *([first] if first else []), *range(first + 1, ids.shape[1] + 1)]
        parts: list[F32] = []
        for start, end in pairwise(cuts):
            answer = self._session.run(state.feeds(ids[:, start:end], start))
            state.keep(answer)
            parts.append(_f32(answer["logits"]).reshape(ids.shape[0], end - start, -1))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def answers(self, ids: I64, first: int) -> F32:
        """Return logits [tokens - first, vocab] of the tokens from `first` on of one window, ids [tokens]."""
        feeds = _state(self.program, ids[None]).feeds(ids[None], 0)
        if "logit_rows" in feeds:
            feeds["logit_rows"] = feeds["logit_rows"][first:]
            first = 0
        return _f32(self._session.run(feeds)["logits"]).reshape(-1, self.vocab_size)[first:]

    def close(self) -> None:
        """Let go of the weights."""
        self._session.__exit__(None, None, None)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the weights."""
        self.close()


def draft_logits(draft: Program, ids: I64, features: F32, *, cached_from: int | None = None) -> F32:
    """Run a draft over token ids [sequences, tokens] and features [sequences, tokens, hidden].

    Entry i of a sequence is feature i and the token behind it. Logits are [sequences, tokens, vocabulary] of
    an eagle, [sequences, tokens, heads, vocabulary] of medusa. `cached_from` is that of `logits`.
    """
    state, shape = _state(draft, ids), ids.shape
    first = shape[1] if cached_from is None else cached_from
    read = {str(value.name) for value in draft.graph.inputs}
    flat = (-1,) if draft.form == "ragged" else (shape[0], -1)
    parts = []
    with Session(draft) as session:
        for start, end in pairwise([0, *([first] if first else []), *range(first + 1, shape[1] + 1)]):
            given = np.ascontiguousarray(features[:, start:end]).reshape(*flat, features.shape[-1])
            feeds = {**state.feeds(ids[:, start:end], start), FEATURES: given}
            answer = session.run({name: array for name, array in feeds.items() if name in read})
            state.keep(answer)
            made = _f32(answer["logits"])
            parts.append(made.reshape(shape[0], end - start, *made.shape[len(flat) :]))
    return np.concatenate(parts, axis=1)


def feeds_of(program: Program, ids: I64) -> dict[str, Array]:
    """Return the inputs of one step over ids [sequences, tokens], the cache empty."""
    return _state(program, ids).feeds(ids, 0)


def fixed_ids(program: Program, sequences: int, tokens: int) -> I64:
    """Return token ids [sequences, tokens] that are always the same, spread over the vocabulary."""
    places = np.arange(1, sequences * tokens + 1)
    ids: I64 = (7919 * places % program.config.vocab).reshape(sequences, tokens)
    return ids


def _f32(logits: Array) -> F32:
    return np.asarray(logits, np.float32)


def _state(program: Program, ids: I64) -> "_Dense | _Paged":
    return _Dense(program) if program.form == "batch" else _Paged(program, *ids.shape)


class _Dense:
    """Hold the cache of a batch program between steps."""

    def __init__(self, program: Program) -> None:
        self.past: dict[str, Array] = {}
        names = [str(value.name) for value in program.graph.inputs]
        self.names = [name for name in names if name.startswith("past_key_values.")]
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
        names = {str(value.name) for value in program.graph.inputs}
        self.trees = names.issuperset(TREE_INPUTS)
        for value in program.graph.inputs:
            if not str(value.name).startswith("kv."):
                continue
            assert value.dtype is not None, f"'{value.name}' has no type"
            assert value.shape is not None, f"'{value.name}' has no shape"
            shape = (pages.size, *(size for size in tuple(value.shape) if isinstance(size, int)))
            self.caches[str(value.name)] = np.full(shape, 1, value.dtype.numpy())

    def feeds(self, ids: Array, start: int) -> dict[str, Array]:
        """Return the inputs of a step over `ids` [sequences, tokens], which begin at position `start`."""
        sequences, tokens = ids.shape
        positions = np.tile(np.arange(start, start + tokens), sequences)
        chain = {"entries": positions, "ancestors": np.zeros_like(positions)} if self.trees else {}
        return {
            "input_ids": ids.reshape(-1),
            "positions": positions,
            "sequences": np.repeat(np.arange(sequences), tokens),
            "block_tables": self.block_tables,
            "logit_rows": np.arange(ids.size),
            **chain,
            **self.caches,
        }

    def keep(self, answer: Mapping[str, Array]) -> None:
        """Take over the pages that a step returned."""
        self.caches = {name: answer[f"{name}.out"] for name in self.caches}
