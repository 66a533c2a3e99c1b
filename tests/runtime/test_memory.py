"""Memory of the CPU executor: huge pages where they are asked for."""

import os
import re
from pathlib import Path

import pytest

from tokc.runtime.executors.cpu import _anonymous

MIB = 1 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapping_at(address: int) -> str:
    """Return what the kernel says of the mapping that holds an address."""
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for text in maps[1:]:
        low, high = (int(part, 16) for part in text.split()[0].split("-"))
        if low <= address < high:
            return text
    raise AssertionError(f"nothing is mapped at {address:x}")


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the kernel gives no huge pages"
)
def test_memory_lies_on_huge_pages_where_asked() -> None:
    memory = _anonymous(16 * MIB, huge=True)
    memory[:] = 1
    found = re.search(r"AnonHugePages:\s+(\d+) kB", mapping_at(memory.ctypes.data + 8 * MIB))
    assert found is not None
    assert int(found[1]) * 1024 >= 8 * MIB


def test_untouched_memory_takes_none() -> None:
    before = resident_bytes()
    memory = _anonymous(256 * MIB, huge=True)
    memory[0] = 1
    assert resident_bytes() - before < 64 * MIB


def resident_bytes() -> int:
    """Return what this process takes of the memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
