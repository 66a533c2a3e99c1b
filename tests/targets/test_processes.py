"""Compilers beside each other: the failure of one is told, and none outlives the call."""

import os
import sys
import time
from pathlib import Path

from tokc.targets.processes import first_failure

FAILS = [sys.executable, "-c", "raise SystemExit('no such intrinsic')"]


def test_nothing_is_said_where_all_succeed() -> None:
    assert first_failure([[sys.executable, "-c", "print('made')"]] * 2, [os.environ] * 2) is None


def test_the_first_failure_is_told_and_ends_the_others(tmp_path: Path) -> None:
    late = tmp_path / "late"
    waits = [sys.executable, "-c", f"import time; time.sleep(60); open({str(late)!r}, 'w')"]
    begun_s = time.monotonic()
    assert first_failure([FAILS, waits], [os.environ] * 2) == "no such intrinsic"
    assert time.monotonic() - begun_s < 60
    assert not late.exists()
