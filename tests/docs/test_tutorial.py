"""The tutorial's commands, each run as it stands, in their order, on the real model."""

import http.client
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
COMMANDS = [line[4:] for line in PAGE.read_text().splitlines() if re.match(r" {4}(tokc|curl) ", line)]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(smollm2_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "smollm2.gguf").symlink_to(smollm2_gguf)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = None
    try:
        for command in COMMANDS:
            if command.startswith("tokc serve"):
                server = subprocess.Popen(command.split(), cwd=tmp_path, env=environment)
                wait_until_ready()
                continue
            done = subprocess.run(
                shlex.split(command),
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                env=environment,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            if command.startswith("curl"):
                assert '"content"' in done.stdout
                assert server is not None
                server.terminate()
                assert server.wait(60) == 0
    finally:
        if server is not None:
            server.kill()
    written = {path.name for path in tmp_path.iterdir()}
    assert {
        "smollm2.tokc",
        "wide.tokc",
        "bench.json",
        "report.html",
        "report.json",
        "load.json",
        "back.gguf",
    } <= written


def wait_until_ready(port: int = 8000, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
        assert time.monotonic() < end, f"port {port} is not ready"
