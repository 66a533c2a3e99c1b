"""Importing numpy for the runtime: nothing spins, and nothing is left changed."""

import gc
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import repository
from tokc.runtime.quick_import import SPIN, quick_imports

CODE = """
import json, os, resource, time
from tokc.runtime.quick_import import quick_imports
with quick_imports():
    import numpy
def cpu_s():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
time.sleep(0.002)
start = cpu_s()
time.sleep(0.1)
print(json.dumps({"idle_s": cpu_s() - start, "environment": sorted(os.environ)}))
"""


def test_an_idle_process_that_imported_numpy_takes_no_core() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, cwd=repository())
    found = json.loads(done.stdout)
    assert found["idle_s"] < 0.01
    assert SPIN not in found["environment"]


@pytest.mark.parametrize("collects", [True, False])
def test_collecting_is_as_it_was_also_after_an_error(collects: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(AssertionError, match="within"), quick_imports():
            raise AssertionError("within" if not gc.isenabled() else "it collects")
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_the_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setenv(SPIN, "9")
    with quick_imports():
        assert os.environ[SPIN] == "9"
    assert os.environ[SPIN] == "9"


def test_numpy_that_is_there_already_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", object())
    monkeypatch.delenv(SPIN, raising=False)
    with quick_imports():
        assert SPIN not in os.environ
