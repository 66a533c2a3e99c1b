"""`tokc deploy` before there is a cluster; tests/runtime/server/test_replicas.py has one."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokc.cli.app import app
from tokc.errors import TokcError

runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tokc.runtime.server.replicas", raising=False)
    result = runner.invoke(app, ["deploy", "ray", str(tmp_path)])
    assert isinstance(result.exception, TokcError)
    assert "`tokc deploy ray` needs 'ray'" in str(result.exception)
    assert "extra `ray`" in str(result.exception)


def test_another_cluster_is_refused_by_name(tmp_path: Path) -> None:
    result = runner.invoke(app, ["deploy", "slurm", str(tmp_path)])
    assert result.exit_code == 2
    assert "'slurm'" in result.output
    assert "ray" in result.output
