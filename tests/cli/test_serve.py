"""`tokc serve` and `tokc key`, as processes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from tests.conftest import repository

Tokc = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def program() -> Iterator[Tokc]:
    """Return a function that starts `tokc`."""
    with ExitStack() as stack:

        def start(*arguments: object) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "tests.cli.serve_hash_model", *map(str, arguments)]
            pipe = subprocess.PIPE
            process = stack.enter_context(
                subprocess.Popen(command, cwd=repository(), stdout=pipe, stderr=pipe, text=True)
            )
            stack.callback(process.kill)
            return process

        yield start


def test_a_key_that_was_made_opens_the_server_until_it_is_told_to_stop(program: Tokc, tmp_path: Path) -> None:
    keys, usage, audit = (tmp_path / name for name in ("keys", "usage", "audit"))
    made = program("key", "alice", "--append-to", keys, "--tokens-per-minute", 1000)
    secret = made.communicate(timeout=20)[0].strip()
    assert made.returncode == 0
    server = program(
        "serve", "x.tokc", "--port", 0, "--api-keys", keys, "--usage-log", usage, "--audit-log", audit
    )
    assert server.stderr is not None
    line = server.stderr.readline()
    assert line.startswith("serving hash at http://127.0.0.1:"), line
    base = f"{line.split()[-1]}/v1"
    with openai.OpenAI(base_url=base, api_key=secret, max_retries=0) as client:
        answer = client.chat.completions.create(
            model="hash", messages=[{"role": "user", "content": "hi"}], max_tokens=4
        )
    with (
        openai.OpenAI(base_url=base, api_key="no", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == 0
    [used] = [json.loads(line) for line in usage.read_text().splitlines()]
    assert answer.usage is not None
    assert (used["key"], used["prompt_tokens"]) == ("alice", answer.usage.prompt_tokens)
    assert [json.loads(line)["status"] for line in audit.read_text().splitlines()] == [200, 401]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "no API keys"),  # noqa: S104
        (["--tls-cert", "a.pem"], 2, "TLS needs a certificate and its key"),
        (["--api-keys", "missing"], 1, "the file of keys cannot be read"),
        (["--host", "no.such.host.invalid"], 2, "is not known"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(
    program: Tokc, options: list[str], code: int, said: str
) -> None:
    process = program("serve", "x.tokc", "--port", 0, *options)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == code
    assert error.startswith("error: ")
    assert said in error


def test_a_key_is_printed_once_and_its_line_beside_it(program: Tokc) -> None:
    process = program("key", "bob", "--json")
    made = json.loads(process.communicate(timeout=20)[0])
    assert made["key"].startswith(f"tokc-{json.loads(made['line'])['id']}-")
    assert made["key"].split("-", 2)[2] not in made["line"]
    assert program("key", "no name").wait(20) == 1
