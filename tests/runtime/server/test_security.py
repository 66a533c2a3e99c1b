"""Keys, budgets, TLS, who may listen where, and what the logs say."""

import json
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.runtime.conftest import MakeEngine
from tests.runtime.server.background import PROMPT, Served, serving
from tokc.errors import TokcError, UnknownOption
from tokc.runtime.server.budgets import Bucket
from tokc.runtime.server.keys import Key, append_key, make_key, read_keys
from tokc.runtime.server.ledger import JsonLines
from tokc.runtime.server.service import Service
from tokc.runtime.server.serving import Tls, is_loopback, require_safe_bind, server_of, tls_of
from tokc.runtime.server.settings import Settings

BODY = {"prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}
HERE = Path(__file__).parent  # has a certificate for 127.0.0.1, whose key is no secret

Keyed = Callable[..., Served]


@pytest.fixture
def keyed(make_engine: MakeEngine) -> Iterator[Keyed]:
    """Return a function that serves the tiny model to the owners of keys."""
    with ExitStack() as stack:

        def start(
            *keys: Key,
            secret: str = "none",  # noqa: S107
            settings: Settings | None = None,
            **logs: JsonLines,
        ) -> Served:
            service = Service(make_engine(), settings, keys=keys, **logs)  # type: ignore[arg-type]
            return stack.enter_context(serving(service, key=secret))

        yield start


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_only_a_right_key_is_let_in(keyed: Keyed) -> None:
    (secret, key), (foreign, _) = make_key("alice"), make_key("mallory")
    served = keyed(key, secret=secret)
    for _ in range(2):  # the second is known by another way
        assert served.client.completions.create(model="hash", prompt=PROMPT, max_tokens=3).usage
        for wrong in (
            foreign,
            secret[:-1],
            secret + "x",
            secret[:18] + foreign[18:],
            "x",
            "tokc--",
            "é" * 9,
        ):
            answer = served.http.get("/v1/models", headers={b"Authorization": f"Bearer {wrong}".encode()})
            assert answer.status_code == 401, wrong
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "invalid_request_error"
    assert served.http.get("/v1/models", headers=bearer(foreign)).json()["error"]["code"] == "invalid_api_key"
    assert served.http.get("/v1/models", headers={"Authorization": "Basic x"}).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/hash", "/metrics"])
def test_what_tells_of_use_needs_a_key(keyed: Keyed, path: str) -> None:
    secret, key = make_key("alice")
    served = keyed(key)
    assert served.http.get(path).status_code == 401
    assert served.http.get(path, headers=bearer(secret)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_what_makes_work_needs_a_key_before_its_body_is_read(keyed: Keyed, path: str) -> None:
    served = keyed(make_key("alice")[1])
    assert (
        served.http.post(path, content=b"{", headers={"Content-Type": "application/json"}).status_code == 401
    )


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/openapi.json"])
def test_what_a_balancer_asks_needs_no_key(keyed: Keyed, path: str) -> None:
    assert keyed(make_key("alice")[1]).http.get(path).status_code == 200


def test_the_document_says_whether_a_key_is_asked_for(keyed: Keyed, served: Served) -> None:
    with_keys, without = (
        one.http.get("/openapi.json").json() for one in (keyed(make_key("alice")[1]), served)
    )
    assert with_keys["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in without["paths"]["/v1/models"]["get"]
    assert "401" in with_keys["paths"]["/v1/completions"]["post"]["responses"]
    assert "401" not in without["paths"]["/v1/completions"]["post"]["responses"]


def test_the_file_holds_hashes_and_gives_the_keys_back(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\n" + make_key("zoe")[1].line())  # no end of line
    secret, key = make_key("alice", requests_per_minute=9, tokens_per_minute=99, priority=-2)
    append_key(path, key)
    assert read_keys(path)[1] == key
    assert key.fits(secret.split("-", 2)[2])
    assert secret.split("-", 2)[2] not in path.read_text()
    fresh = tmp_path / "fresh"
    append_key(fresh, key)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"name": "a b"},
        {"more": 1},
        {"scrypt": {}},
        {"scrypt": "x"},
        {"requests_per_minute": 0},
        {"tokens_per_minute": True},
        {"priority": 1000},
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "keys"
    path.write_text("\n" + json.dumps({**json.loads(make_key("alice")[1].line()), **change}))
    with pytest.raises(TokcError) as refusal:
        read_keys(path)
    assert refusal.value.where == f"{path}:2"


@pytest.mark.parametrize("change", [{"n": 1 << 30}, {"n": 1000}, {"r": 0}, {"hash": "AAAA"}, {"salt": "?"}])
def test_a_hash_that_costs_too_much_or_nothing_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    line = json.loads(make_key("alice")[1].line())
    path = tmp_path / "keys"
    path.write_text(json.dumps({**line, "scrypt": {**line["scrypt"], **change}}))
    with pytest.raises(TokcError):
        read_keys(path)


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none\n")
    with pytest.raises(TokcError, match="no key"):
        read_keys(path)
    with pytest.raises(TokcError, match="cannot be read"):
        read_keys(tmp_path / "missing")


def test_requests_beyond_a_keys_rate_wait(keyed: Keyed) -> None:
    (secret, key), (other, more) = make_key("alice", requests_per_minute=2), make_key("bob")
    served = keyed(key, more, secret=secret)
    assert [served.post("/v1/completions", BODY).status_code for _ in range(2)] == [200, 200]
    refused = served.post("/v1/completions", BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert served.post("/v1/completions", BODY, **bearer(other)).status_code == 200


def test_tokens_beyond_a_keys_budget_wait_and_answers_count(keyed: Keyed) -> None:
    secret, key = make_key("alice", tokens_per_minute=20)
    served = keyed(key, secret=secret)
    assert served.post("/v1/completions", {**BODY, "max_tokens": 40}).status_code == 200
    refused = served.post("/v1/completions", BODY)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 60
    assert served.http.get("/v1/models").status_code == 200


def test_keys_of_one_name_share_a_budget(keyed: Keyed) -> None:
    (first, one), (second, other) = (make_key("alice", requests_per_minute=1) for _ in range(2))
    served = keyed(one, other)
    assert served.post("/v1/completions", BODY, **bearer(first)).status_code == 200
    assert served.post("/v1/completions", BODY, **bearer(second)).status_code == 429


def test_a_bucket_fills_steadily_and_never_over() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(90)
    assert bucket.level == -30
    assert bucket.seconds_until(1) == 31
    now[0] = 31.0
    assert bucket.seconds_until(1) == 0
    now[0] = 1000.0
    assert bucket.level == 60
    assert bucket.seconds_until(500) == 0


def cached(served: Served, **change: object) -> int:
    headers = change.pop("headers", {})
    body = {**BODY, "prompt": "the same twelve and more", **change}
    answer = served.post("/v1/completions", body, **headers).json()  # type: ignore[arg-type]
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_cached_beginning_is_found_with_the_same_key_and_salt_only(keyed: Keyed) -> None:
    (first, one), (second, other), (again, same) = make_key("alice"), make_key("bob"), make_key("alice")
    served = keyed(one, other, same)
    assert cached(served, headers=bearer(first)) == 0
    assert cached(served, headers=bearer(first)) > 0
    assert cached(served, headers=bearer(second)) == 0
    assert cached(served, headers=bearer(again)) > 0
    assert cached(served, headers=bearer(first), cache_salt="s") == 0
    assert cached(served, headers=bearer(first), cache_salt="s") > 0
    assert cached(served, headers=bearer(second), cache_salt="s") == 0


def test_a_salt_isolates_without_keys_too(served: Served) -> None:
    assert [cached(served) > 0, cached(served) > 0] == [False, True]
    assert [cached(served, cache_salt="s") > 0, cached(served, cache_salt="s") > 0] == [False, True]


def test_a_request_is_not_more_urgent_than_its_key(keyed: Keyed) -> None:
    secret, key = make_key("alice", priority=2)
    served = keyed(key, secret=secret)
    assert served.post("/v1/completions", {**BODY, "priority": 3}).status_code == 200
    refused = served.post("/v1/completions", {**BODY, "priority": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, f"{path.name} has fewer than {count} lines"
        time.sleep(0.005)


def test_usage_and_audit_have_a_line_for_each_request_and_no_content(keyed: Keyed, tmp_path: Path) -> None:
    secret, key = make_key("alice")
    with JsonLines(tmp_path / "usage") as usage, JsonLines(tmp_path / "audit") as audit:
        served = keyed(key, secret=secret, usage_log=usage, audit_log=audit)
        prompt = "a prompt that nobody else may read"
        body = {**BODY, "prompt": prompt, "n": 2, "user": "u-1", "temperature": 1.0, "seed": 1}
        answer = served.post("/v1/completions", body, **{"X-Request-Id": "r-1"}).json()
        served.post("/v1/completions", {**body, "stream": True})
        wait_for_lines(tmp_path / "audit", 2)  # in order: a call is written down after its last byte was read
        served.post("/v1/completions", {"prompt": prompt, "no": 1})
        wait_for_lines(tmp_path / "audit", 3)
        served.http.get("/v1/models", headers=bearer("wrong"))
        wait_for_lines(tmp_path / "audit", 4)
    lines = [json.loads(line) for line in (tmp_path / "usage").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["alice"] * 2
    assert lines[0]["request_id"] == "r-1"
    for name in ("prompt_tokens", "completion_tokens"):
        assert lines[0][name] == lines[1][name] == answer["usage"][name]
    assert lines[1]["cached_tokens"] > 0
    seen = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["status"] for line in seen] == [200, 200, 400, 401]
    assert [line["error"] for line in seen] == [None, None, "unknown_parameter", "invalid_api_key"]
    assert seen[0]["user"] == "u-1"
    assert seen[0]["finish_reasons"] == ["length", "length"]
    for secretive in (prompt, secret, answer["choices"][0]["text"]):
        assert secretive not in (tmp_path / "audit").read_text() + (tmp_path / "usage").read_text()


def test_tls_is_spoken_with_a_certificate(make_engine: MakeEngine) -> None:
    tls = Tls(HERE / "localhost.pem", HERE / "localhost.key")
    with serving(Service(make_engine()), tls=tls) as served:
        assert served.post("/v1/completions", BODY).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.url.replace("https", "http") + "/health")
        context = ssl.create_default_context(cafile=str(tls.certificate))
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(served.url + "/health", verify=context)


def test_a_certificate_that_is_none_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    with pytest.raises(TokcError, match="certificate"):
        server_of(Service(make_engine()), tls=Tls(tmp_path / "a.pem", tmp_path / "a.pem"))
    with pytest.raises(UnknownOption, match="certificate and its key"):
        tls_of(tmp_path / "a.pem", None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert require_safe_bind(host, has_keys=False, has_tls=False, allow=False) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])  # noqa: S104
def test_other_machines_need_a_key_unless_told_otherwise(host: str) -> None:
    with pytest.raises(UnknownOption, match="no API keys"):
        require_safe_bind(host, has_keys=False, has_tls=True, allow=False)
    assert require_safe_bind(host, has_keys=True, has_tls=True, allow=False) == []
    assert len(require_safe_bind(host, has_keys=True, has_tls=False, allow=False)) == 1
    assert len(require_safe_bind(host, has_keys=False, has_tls=False, allow=True)) == 2
