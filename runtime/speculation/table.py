"""The methods of speculation, by name."""

from tokc.runtime.speculation.answers import Answers
from tokc.runtime.speculation.config import MAX_TOKENS, SpeculativeConfig
from tokc.runtime.speculation.drafter import Drafter
from tokc.runtime.speculation.ngram import NgramDrafter
from tokc.runtime.speculation.speculation import Speculation


def speculation_of(config: SpeculativeConfig | None) -> Speculation | None:
    """Return a new speculation as it was asked for, None for none."""
    if config is None or config.method == "none":
        return None
    return Speculation(_drafter(config), most=config.num_speculative_tokens or MAX_TOKENS)


def _drafter(config: SpeculativeConfig) -> Drafter:
    return NgramDrafter(Answers() if config.method == "suffix" else None)
