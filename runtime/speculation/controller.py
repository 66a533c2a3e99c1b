"""How much to draft for each sequence of a step."""

from collections.abc import Sequence as Items

from tokc.runtime.sequence import Sequence
from tokc.runtime.speculation.config import MAX_TOKENS, SpeculativeConfig
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.step_time import StepTime


class Speculation:
    """Chooses how much to draft for each sequence of a step, so that a step makes more tokens a second.

    A token is drafted while it adds more to the expected tokens, at the sequence's own rate of acceptance,
    than it adds to the expected time of the step.
    """

    def __init__(self, most: int = MAX_TOKENS) -> None:
        """Draft at most `most` tokens for a sequence; start without experience."""
        self.most = most
        self._drafters: dict[Sequence, NgramDrafter] = {}
        self.time = StepTime()
        self.drafted = 0
        self.held = 0

    def drafts(self, sequences: Items[Sequence], tokens: int, room: int) -> dict[Sequence, list[int]]:
        """Return drafts for sequences that compute their last token in a step of `tokens`.

        Together they hold at most `room` tokens; a sequence without a draft is left out.
        """
        offers = {sequence: self._offer(sequence, room) for sequence in sequences}
        rates = {sequence: self._drafters[sequence].acceptance for sequence in sequences}
        counts = dict.fromkeys(sequences, 0)
        expected = float(len(sequences))
        base, slope = self.time.line()
        while room > 0:
            gains = {
                sequence: rates[sequence] ** (counts[sequence] + 1)
                for sequence, found in offers.items()
                if counts[sequence] < len(found)
            }
            best = max(gains, key=lambda sequence: gains[sequence], default=None)
            if best is None or gains[best] * (base + slope * tokens) <= slope * expected:
                break
            counts[best] += 1
            expected, tokens, room = expected + gains[best], tokens + 1, room - 1
        return {sequence: offers[sequence][:count] for sequence, count in counts.items() if count}

    def _offer(self, sequence: Sequence, room: int) -> list[int]:
        drafter = self._drafters.setdefault(sequence, NgramDrafter())
        most = min(self.most, sequence.last_output - sequence.output_length - 1, room)
        return drafter.draft(sequence.tokens, most) if most > 0 else []

    def learn(self, sequence: Sequence, drafted: int, held: int) -> None:
        """Note how a draft of a sequence went; a sequence that ended is forgotten."""
        self.drafted += drafted
        self.held += held
        if sequence.finish_reason is not None:
            self._drafters.pop(sequence, None)
        elif sequence in self._drafters:
            self._drafters[sequence].learn(drafted, held)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence that was taken out."""
        self._drafters.pop(sequence, None)


def speculation_of(config: SpeculativeConfig | None) -> Speculation | None:
    """Return a new speculation as it was asked for, None for none."""
    if config is None or config.method == "none":
        return None
    return Speculation(config.num_speculative_tokens or MAX_TOKENS)
