"""What is read from generation_config.json."""

import pytest

from tokc.runtime.generation_config import GenerationConfig
from tokc.runtime.sequence import SamplingParams


@pytest.mark.parametrize(
    ("text", "ids", "sampling"),
    [
        (None, (), SamplingParams()),
        ('{"eos_token_id": 2, "temperature": 0.6}', (2,), SamplingParams()),
        ('{"eos_token_id": [2, 7], "do_sample": true}', (2, 7), SamplingParams(temperature=1.0)),
        (
            '{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": null, "eos_token_id": null}',
            (),
            SamplingParams(temperature=0.6, top_p=0.9),
        ),
    ],
)
def test_it_says_what_ends_an_answer_and_how_to_sample(
    text: str | None, ids: tuple[int, ...], sampling: SamplingParams
) -> None:
    assert GenerationConfig.parse(text) == (ids, sampling)
