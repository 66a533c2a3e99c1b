"""The committed table of bytes moved over the least, and its bound."""

import pytest

from tests.conftest import repository
from tests.ptx.compile import Compiler
from tests.targets.gpu.ptx.traffic import BEGIN, CASES, DOCUMENT, END, moved_over_least

MOST = 1.1


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_moves_what_the_table_says_and_little_more_than_it_must(
    name: str, compiled: Compiler
) -> None:
    """Write it anew with `python -m tests.targets.gpu.ptx.traffic` and read the difference."""
    table = (repository() / DOCUMENT).read_text().partition(BEGIN)[2].partition(END)[0]
    head, *rows = [
        [part.strip() for part in line.strip("|").split("|")] for line in table.split("\n") if "|" in line
    ]
    stated = {row[0]: row[head.index("sm_90")] for row in rows}
    found = moved_over_least(name, compiled, "sm_90")
    assert found <= MOST
    assert stated[name] == f"{found:.2f}"
