"""The endpoints beside completions, and the bodies that no endpoint takes."""

import json

import pytest

import tokc
from tests.runtime.server.background import MESSAGES, PROMPT, Served
from tests.runtime.server.conftest import Serve
from tokc.runtime.server.page import PAGES
from tokc.runtime.server.parameters import CHAT, COMPLETION
from tokc.runtime.server.settings import Settings


def test_tokens_of_a_text_and_back(served: Served) -> None:
    found = served.post("/tokenize", {"prompt": "né", "return_token_strs": True}).json()
    assert found["tokens"] == served.engine.tokenizer.encode("né")
    assert found["count"] == 3
    assert found["max_model_len"] == served.engine.context_length
    assert len(found["token_strs"]) == 3
    assert served.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "né"}
    assert served.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_tokens_of_a_chat_are_those_that_the_model_reads(served: Served) -> None:
    found = served.post("/tokenize", {"messages": MESSAGES}).json()
    usage = served.client.chat.completions.create(model="hash", messages=MESSAGES, max_tokens=1).usage
    assert usage is not None
    assert found["count"] == usage.prompt_tokens
    without = served.post("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}).json()
    assert without["tokens"] == found["tokens"][: without["count"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}),
        ("/detokenize", {"tokens": [9999]}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {}),
    ],
)
def test_wrong_tokens_are_refused(served: Served, path: str, body: object) -> None:
    assert served.post(path, body).status_code == 400
    assert served.post(path, {"prompt": "a", "tokens": [1], "model": "other"}).status_code in {400, 404}


def test_version_ready_and_health(served: Served) -> None:
    assert json.loads(served.get("/version")) == {"version": tokc.__version__}
    assert json.loads(served.get("/ready")) == {"status": "ready"}
    assert json.loads(served.get("/health")) == {"status": "ok"}


def test_the_document_lists_every_route_and_parameter(served: Served) -> None:
    document = json.loads(served.get("/openapi.json"))
    app = served.server.config.app
    assert {route.path for route in app.routes} - set(PAGES) == {  # type: ignore[union-attr]
        path.replace("{model}", "{model:path}") for path in document["paths"]
    }
    for path, table in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"].keys() == table.keys()
        assert body["additionalProperties"] is False


def test_an_unknown_path_and_a_wrong_method_have_openais_body(served: Served) -> None:
    missing = served.http.get("/v2/models")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    wrong = served.http.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
        (b"3", 400, "invalid_type"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_json"),
        (b'{"temperature": NaN, "prompt": "a"}', 400, "invalid_json"),
        (b'{"temperature": 1e999, "prompt": "a"}', 400, "invalid_value"),
        (b'{"seed": ' + b"9" * 5000 + b', "prompt": "a"}', 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"metadata":' + b'{"a":' * 40 + b"1" + b"}" * 41, 400, "invalid_json"),
        (b'{"prompt": "' + b"a" * 70_000 + b'"}', 413, "request_too_large"),
    ],
)
def test_a_malformed_body_has_one_clear_error(serve: Serve, content: bytes, status: int, code: str) -> None:
    served = serve(Settings(max_body_bytes=64_000 if status == 413 else 1 << 20))
    headers = {"Content-Type": "application/json"}
    answer = served.http.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code


def test_a_body_of_another_type_is_refused(served: Served) -> None:
    answer = served.http.post(
        "/v1/completions", content=b'{"prompt": "a"}', headers={"Content-Type": "text/plain"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_request_keeps_its_id_and_gets_one_otherwise(served: Served) -> None:
    named = served.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1}, **{"X-Request-Id": "my-1"})
    assert named.headers["x-request-id"] == "my-1"
    strange = served.post("/v1/completions", {"prompt": PROMPT}, **{"X-Request-Id": "a b"})
    assert strange.headers["x-request-id"].startswith("req-")
