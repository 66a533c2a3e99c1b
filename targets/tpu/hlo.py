"""Reads what matters out of XLA's text: what chips say to each other, and which kernels are not XLA's own."""

import re
from collections import Counter

COLLECTIVE = re.compile(
    r"= (\S+?|\(.*?\)) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
LAYOUT = re.compile(r"\{[^}]*\}")
CUSTOM_CALL = re.compile(r'custom_call_target="([^"]+)"')


def collectives(text: str) -> dict[str, int]:
    """Return how often each collective with its shape occurs, as `all-reduce f32[8,2048]`."""
    found = Counter(
        f"{match[2]} {LAYOUT.sub('', match[1])}"
        for match in map(COLLECTIVE.search, text.splitlines())
        if match
    )
    return dict(sorted(found.items()))


def custom_calls(text: str) -> dict[str, int]:
    """Return how often each custom call occurs; `tpu_custom_call` is a Pallas kernel."""
    return dict(sorted(Counter(CUSTOM_CALL.findall(text)).items()))
