"""What drafts did to the rate at a batch size."""

from dataclasses import dataclass

from tokc.cost.spread import Spread


@dataclass(frozen=True)
class Drafted:
    """What drafts did at one batch size.

    Rates are output tokens a second over the whole time, in turns with drafts and without; `speedup` is
    theirs, turn by turn. `verified_at` and `accepted_at` count drafted tokens by their place in the draft.
    """

    batch: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: Spread
    plain_tokens_per_s: Spread
    speedup: Spread
    drafts: int
    verified_at: tuple[int, ...]
    accepted_at: tuple[int, ...]

    @property
    def acceptance_rate(self) -> float:
        """Return the share of drafted tokens that held."""
        return sum(self.accepted_at) / max(sum(self.verified_at), 1)

    @property
    def mean_acceptance_length(self) -> float:
        """Return the tokens that a draft's step made for its sequence, the one it makes anyway included."""
        return 1 + sum(self.accepted_at) / max(self.drafts, 1)
