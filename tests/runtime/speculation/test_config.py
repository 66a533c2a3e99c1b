"""What is asked of speculation is read, or refused with what would be accepted."""

import pytest

from tokc.errors import UnknownOption
from tokc.runtime.speculation.config import SpeculativeConfig


def test_a_configuration_is_read() -> None:
    config = SpeculativeConfig.parse('{"method": "ngram", "num_speculative_tokens": 4}')
    assert config == SpeculativeConfig("ngram", 4)
    assert config.most == 4
    config = SpeculativeConfig.parse('{"method": "draft_model", "model": "small.tokc"}')
    assert config == SpeculativeConfig("draft_model", None, "small.tokc")
    assert 1 < config.most < SpeculativeConfig("ngram").most


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ngram", "'ngram' is not JSON"),
        ("7", "no JSON object"),
        ('{"method": "guess"}', "unknown method 'guess'; choose from ngram"),
        ("{}", "unknown method 'None'"),
        ('{"method": "draft_model"}', "method 'draft_model' needs 'model'"),
        ('{"method": "draft_model", "model": 3}', "model is '3', expected the path"),
        ('{"method": "eagle", "model": "x"}', "'model' is for method 'draft_model', not 'eagle'"),
        ('{"method": "ngram", "depth": 3}', "unknown key 'depth'; choose from method"),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "is '0', expected 1 to"),
        ('{"method": "ngram", "num_speculative_tokens": true}', "is 'True', expected 1 to"),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UnknownOption, match=problem):
        SpeculativeConfig.parse(text)
