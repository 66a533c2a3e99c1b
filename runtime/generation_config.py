"""What a model's `generation_config.json` recommends."""

import json
from typing import NamedTuple, Self

from tokc.runtime.sequence import SamplingParams

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class GenerationConfig(NamedTuple):
    """The tokens that end an answer, beside the model's own, and how to sample; greedy if it does not say."""

    eos_token_ids: tuple[int, ...]
    sampling: SamplingParams

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read the text of the file, None if there is none."""
        generation: dict[str, object] = json.loads(text or "{}")
        return cls(_ids(generation.get("eos_token_id")), _sampling(generation))


def _sampling(generation: dict[str, object]) -> SamplingParams:
    if not generation.get("do_sample"):
        return SamplingParams()
    chosen = {name: generation[name] for name in SAMPLING if generation.get(name)}
    return SamplingParams(**{"temperature": 1.0, **chosen})  # type: ignore[arg-type]


def _ids(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, int))
