"""What drafts did is counted under vLLM's names."""

from tokc.runtime.counters import Counters, Gauges
from tokc.runtime.server.metrics import exposition


def test_drafts_are_counted_in_all_and_by_place() -> None:
    counters = Counters()
    counters.drafts.add(5, 3, 2)
    counters.drafts.add(2, 2, 0)
    text = exposition(counters, Gauges(0, 0, 0, 1, 0), {})
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    name = "tokc_spec_decode_num_"
    assert lines[f"{name}drafts_total"] == "2"
    assert lines[f"{name}draft_tokens_total"] == "7"
    assert lines[f"{name}accepted_tokens_total"] == "2"
    places = [lines[f'{name}accepted_tokens_per_pos_total{{position="{place}"}}'] for place in range(3)]
    assert places == ["1", "1", "0"]
