"""Building, loading and answering open no connection: an audit hook in every Python process would tell."""

import os
import subprocess
import sys
from pathlib import Path

from tests.runtime.hash_model import byte_tokenizer
from tests.tiny_models import tiny_folder

HOOK = """
import os, sys
def hook(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}:
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):
            return  # a socket of this machine's own file system
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]}\\n")
        raise OSError("no network here")
sys.addaudithook(hook)
"""
USE = """
import sys, tokc
path = tokc.compile(sys.argv[1], context=64, out=sys.argv[2])
with tokc.load(path) as engine:
    print(engine.generate([1, 2, 3], max_tokens=2).token_ids)
"""


def run(folder: Path, code: str, *arguments: str) -> tuple[int, str, str]:
    (folder / "sitecustomize.py").write_text(HOOK)
    log = folder / "network.log"
    environment = {**os.environ, "PYTHONPATH": str(folder), "NETWORK_LOG": str(log)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stderr, log.read_text() if log.exists() else ""


def test_the_hook_sees_a_connection(tmp_path: Path) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)"
    returned, _, log = run(tmp_path, code)
    assert returned != 0
    assert "socket" in log


def test_a_build_and_an_answer_open_no_connection(tmp_path: Path) -> None:
    model = tiny_folder("llama3", tmp_path / "model", vocab_size=259)
    (model / "tokenizer.json").write_text(byte_tokenizer().json_text)
    returned, error, log = run(tmp_path, USE, str(model), str(tmp_path / "model.tokc"))
    assert log == ""
    assert returned == 0, error
