"""Two machines of a Ray cluster, as two raylets here: a replica that dies under load loses no request."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

import ray
from ray import serve
from ray.cluster_utils import Cluster

from tests.runtime.hash_model import CHATML, EOS, byte_tokenizer
from tests.runtime.server.gated_model import SlowModel
from tokc.runtime.chat import ChatTemplate
from tokc.runtime.engine import Engine
from tokc.runtime.server.replicas import APPLICATION, ENGINE, Scale, deployed
from tokc.runtime.server.serving import listen
from tokc.runtime.server.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

REQUESTS, ANSWER_TOKENS = 48, 60
RETRIABLE = {"replica_lost", "queue_full"}
DEADLINE_S = 120


def load() -> Engine:
    """Return an engine whose steps take 10 ms; it shows the process that it is in as its model's name."""
    model = SlowModel(context_length=256, num_pages=1024)
    template = ChatTemplate(CHATML, {})
    return Engine(model, byte_tokenizer(), name=f"at-{os.getpid()}", eos_ids=[EOS], chat_template=template)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve two replicas on two nodes of one core each."""
    with listen("127.0.0.1", 0, write_timeout_s=5) as free:
        port = free.getsockname()[1]
    # Serve's own times to start and to answer are short for a machine that does other work.
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = str(DEADLINE_S)
    os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = str(DEADLINE_S)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    scale = Scale(least=2, most=2, ongoing=8, cores=1)
    settings = Settings(max_queue=256, drain_s=2.0)
    with deployed(load, scale, settings, cluster=cluster.address, listen=("127.0.0.1", port)):
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
    cluster.shutdown()


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=DEADLINE_S, limits=httpx.Limits(max_connections=None)) as client:
        yield client


def body_of(number: int, **more: object) -> dict[str, Any]:
    return {"prompt": f"{number} asks", "max_tokens": ANSWER_TOKENS, "ignore_eos": True, **more}


def alone(number: int) -> str:
    with load() as engine:
        return engine.generate(f"{number} asks", max_tokens=ANSWER_TOKENS, ignore_eos=True).text


def outcome(answer: httpx.Response) -> tuple[str, str]:
    """Return `text` and the answer, or `error` and its code; anything else is a request lost silently."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]", "a stream must say how it ended"
        pieces = [json.loads(event) for event in events[:-1]]
        if "error" in pieces[-1]:
            return "error", pieces[-1]["error"]["code"]
        assert pieces[-1]["choices"][0]["finish_reason"] == "length"
        return "text", "".join(piece["choices"][0]["text"] for piece in pieces)
    if answer.status_code == 200:
        return "text", answer.json()["choices"][0]["text"]
    assert answer.status_code in {429, 503}, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    return "error", answer.json()["error"]["code"]


def again(http: httpx.Client, number: int, found: tuple[str, str]) -> str:
    """Return the text of a request, sent again while its answer says so."""
    deadline_s = time.monotonic() + DEADLINE_S
    while found[0] == "error":
        assert time.monotonic() < deadline_s, found
        found = outcome(http.post("/v1/completions", json=body_of(number)))
    return found[1]


def replica_processes(http: httpx.Client, count: int) -> set[int]:
    """Return the process of every replica, when `count` of them answer."""
    found: set[str] = set()
    deadline_s = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline_s, f"only {found} answer"
        answer = http.get("/v1/models")
        if answer.status_code == 200:
            found.add(answer.json()["data"][0]["id"])
    return {int(name.removeprefix("at-")) for name in found}


def test_an_answer_is_that_of_the_engine_alone(http: httpx.Client) -> None:
    replica_processes(http, 2)
    whole = http.post("/v1/completions", json=body_of(1), headers={"X-Request-Id": "mine"})
    assert whole.headers["x-request-id"] == "mine"
    assert outcome(whole) == ("text", alone(1))
    assert outcome(http.post("/v1/completions", json=body_of(1, stream=True))) == ("text", alone(1))


def test_refusals_are_the_servers_own(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=body_of(1, top_p=7))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_p")
    assert http.get("/nothing").json()["error"]["code"] == "unknown_url"
    assert http.post("/v1/completions", content=b"x" * (5 << 20)).status_code == 413


def test_a_prompt_comes_to_the_replica_that_read_its_beginning(http: httpx.Client) -> None:
    cached = Counter[int]()
    for number in range(8):
        for _ in range(3):
            answer = http.post("/v1/completions", json=body_of(1000 + number, max_tokens=2)).json()
            cached[number] += answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert set(cached.values()) == {2}


def test_a_client_that_leaves_frees_its_pages(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/completions", json=body_of(5, stream=True, max_tokens=240)) as answer:
        next(answer.iter_lines())
    deadline_s = time.monotonic() + 20
    clear = 0
    while clear < 10:  # either replica answers
        assert time.monotonic() < deadline_s, "a request runs on"
        clear = clear + 1 if "tokc_requests_running 0" in http.get("/metrics").text else 0


def test_a_replica_that_dies_under_load_loses_no_request_silently(
    http: httpx.Client, figure: Callable[[str], None]
) -> None:
    victim = min(replica_processes(http, 2))
    begun = threading.Semaphore(0)

    def ask(number: int) -> tuple[str, str]:
        begun.release()
        return outcome(http.post("/v1/completions", json=body_of(number, stream=number % 2 == 0)))

    with ThreadPoolExecutor(REQUESTS) as pool:
        asked = [pool.submit(ask, number) for number in range(REQUESTS)]
        for _ in range(REQUESTS):
            begun.acquire()
        while sum(one.done() for one in asked) < 4:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        outcomes = [one.result(timeout=DEADLINE_S) for one in asked]
    kinds = Counter(value if kind == "error" else kind for kind, value in outcomes)
    assert kinds.keys() <= {"text", *RETRIABLE}, kinds
    assert kinds["replica_lost"] > 0, "the replica that died had requests"
    assert kinds["text"] > 0
    for number, first in enumerate(outcomes):
        assert again(http, number, first) == alone(number)
    assert victim not in replica_processes(http, 2)
    figure(f"replica killed under load: of {REQUESTS} requests {dict(kinds)}; all complete when sent again")


def test_ray_sees_the_application(http: httpx.Client) -> None:
    status = serve.status().applications[APPLICATION]
    assert str(status.status) in {"RUNNING", "ApplicationStatus.RUNNING"}
    assert sum(status.deployments[ENGINE].replica_states.values()) == 2
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
