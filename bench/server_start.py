"""From a server's process start to its first token: `python -m bench.server_start ARTIFACT MODEL.gguf`.

tokc's server and llama-cpp-python's (its environment is made if it is not there; `--llamacpp` names another
Python) start in turns, are asked for one token as soon as they accept a connection, and are stopped. Both are
Python before native code; llama.cpp's own llama-server is not on PyPI and not measured.
"""

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.__main__ import write
from bench.peers.environments import interpreter

PROMPT = "The capital of France is"
BODY = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
LOOK_S, GIVE_UP_S = 0.002, 120.0
TOKC = "from tokc.cli.entry import main; main()"


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def first_token_s(command: Sequence[str], port: int) -> float:
    """Start a server and return the seconds until its answer of one token was read."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while time.monotonic() - began < GIVE_UP_S:
                assert process.poll() is None, f"it ended with {process.returncode}: {command}"
                try:
                    answer = ask(port)
                except ConnectionError:
                    time.sleep(LOOK_S)
                    continue
                taken = time.monotonic() - began
                assert answer["choices"][0]["text"], f"no text in {answer}"
                return taken
            raise AssertionError(f"no answer in {GIVE_UP_S:g} s: {command}")
        finally:
            process.terminate()


def ask(port: int) -> dict[str, list[dict[str, str]]]:
    """Return the answer to a request for one token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    connection.request("POST", "/v1/completions", BODY, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    assert response.status == http.HTTPStatus.OK, content
    return dict(json.loads(content))


def main() -> None:
    """Measure in turns and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("model")
    parser.add_argument("--llamacpp", help="Python with llama-cpp-python's server")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    commands = {
        "tokc": [sys.executable, "-c", TOKC, "serve", asked.artifact, "--threads", asked.threads, "--port"],
        "llama-cpp-python": [
            asked.llamacpp or interpreter("llamacpp-server"),
            "-m", "llama_cpp.server", "--model", asked.model,
            "--n_threads", asked.threads, "--n_threads_batch", asked.threads, "--port",
        ],
    }  # fmt: skip
    rounds: dict[str, list[float]] = {name: [] for name in commands}
    for index in range(asked.rounds + 1):  # the first fills the file cache
        for name, command in commands.items():
            port = free_port()
            seconds = first_token_s([*command, str(port)], port)
            if index:
                rounds[name].append(seconds)
    ratios = [ours / theirs for ours, theirs in zip(*rounds.values(), strict=True)]
    found = {"rounds_s": rounds, "ratios": ratios, "median_ratio": statistics.median(ratios)}
    found |= {f"{name}_s": statistics.median(seconds) for name, seconds in rounds.items()}
    print(json.dumps(found, indent=1))
    if asked.out is not None:
        write(asked.out, found)


if __name__ == "__main__":
    main()
