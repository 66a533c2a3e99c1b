"""Changes logits by what was said already: repetition, presence and frequency penalties, and biases."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from tokc.runtime.executors.base import Float32s


class PenaltyState:
    """Counts the tokens of one sequence; a step costs as much as there are distinct ones."""

    def __init__(
        self, *, repetition: float, presence: float, frequency: float, bias: Mapping[int, float]
    ) -> None:
        """Start with no token seen."""
        self._repetition, self._presence, self._frequency = repetition, presence, frequency
        self._bias_ids = np.fromiter(bias, np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._place: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.int32)

    def see_prompt(self, tokens: Iterable[int]) -> None:
        """Note tokens that only the repetition penalty looks at."""
        for token in tokens:
            self._find(token)

    def see_output(self, token: int) -> None:
        """Note one token that the model said."""
        self._counts[self._find(token)] += 1

    def adjust(self, logits: Float32s) -> None:
        """Change the logits f32[vocab] in place.

        Source: Keskar et al. 2019, arXiv:1909.05858 (repetition); OpenAI API reference (presence, frequency).
        """
        used = len(self._place)
        ids, counts = self._ids[:used], self._counts[:used]
        values: npt.NDArray[np.float32] = logits[ids]
        if self._repetition != 1:
            scale = np.float32(self._repetition)
            values = np.where(values > 0, values / scale, values * scale)
        values -= np.float32(self._frequency) * counts.astype(np.float32)
        values -= np.float32(self._presence) * (counts > 0).astype(np.float32)
        logits[ids] = values
        logits[self._bias_ids] += self._bias

    def _find(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place
