"""The server does what its OpenAPI document says, as schemathesis judges it.

It sends what the document allows and what it forbids, and looks for failures of the server, statuses, media
types and bodies that are not in the document, forbidden requests that are let in, and methods and keys that
nobody checks.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.server.background import Served, serving
from tokc.runtime.server.keys import make_key
from tokc.runtime.server.service import Service

HERE = Path(__file__).parent
Figure = Callable[[str], None]
# Parameters that exclude or need others: with one of them a wrong value elsewhere hides behind the refusal.
ENTANGLED = {
    "best_of", "echo", "guided_choice", "guided_grammar", "guided_json", "guided_regex",
    "max_completion_tokens", "max_tokens", "min_tokens", "response_format", "stream_options",
    "structured_outputs", "tool_choice", "tools", "top_logprobs",
}  # fmt: skip


def disentangled(served: Served, path: Path) -> Path:
    """Write the document without the parameters that depend on each other."""
    document = json.loads(served.get("/openapi.json"))
    for name in ("completions", "chat/completions"):
        operation = document["paths"][f"/v1/{name}"]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        for parameter in ENTANGLED & body["properties"].keys():
            del body["properties"][parameter]
    body["properties"]["messages"]["items"]["required"] = ["role", "content"]
    path.write_text(json.dumps(document))
    return path


def conformance(served: Served, *options: str, document: str | Path | None = None) -> str:
    """Return schemathesis' report; fails with it if it found anything."""
    program = Path(sys.executable).with_name("schemathesis")
    config = HERE / "schemathesis.toml"
    key = served.http.headers["Authorization"]
    document = document or f"{served.url}/openapi.json"
    command = [program, "--config-file", config, "run", document, "--url", served.url, "--seed", "1"]
    command += ["--header", f"Authorization: {key}", *options]
    with TemporaryDirectory() as folder:  # it keeps what it would replay in a folder of its own
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    served.wait_until_idle()
    return finished.stdout


def cases(report: str) -> int:
    found = re.search(r"(\d+) generated, (\d+) passed", report)
    assert found is not None, report
    assert found[1] == found[2]
    return int(found[1])


def test_the_server_does_what_its_document_says(roomy: Served, figure: Figure) -> None:
    count = cases(conformance(roomy, "--phases", "coverage,fuzzing", "--max-examples", "8"))
    assert count > 700
    assert roomy.engine.counters.generated_tokens > 0
    figure(f"conformance: {count} requests, none against the document")


def test_one_wrong_value_is_refused_where_all_else_is_right(roomy: Served, tmp_path: Path) -> None:
    before = roomy.service.responses[200]
    document = disentangled(roomy, tmp_path / "openapi.json")
    paths = ("--include-path", "/v1/completions", "--include-path", "/v1/chat/completions")
    assert cases(conformance(roomy, "--phases", "coverage", *paths, document=document)) > 200
    assert roomy.service.responses[200] - before > 50


def test_a_server_with_keys_does_what_its_document_says(make_engine: MakeEngine) -> None:
    secret, key = make_key("alice")
    service = Service(make_engine(), keys=[key])
    with serving(service, key=secret) as served:
        paths = ("--include-path", "/v1/models", "--include-path", "/detokenize")
        assert cases(conformance(served, "--phases", "coverage", *paths)) > 10
        assert service.responses[401] > 0


@pytest.mark.slow
def test_thousands_of_requests_find_nothing_against_the_document(roomy: Served, figure: Figure) -> None:
    report = conformance(roomy, "--phases", "coverage,fuzzing,stateful", "--max-examples", "300")
    assert cases(report) > 3000
    figure(f"conformance: {cases(report)} requests, none against the document")
