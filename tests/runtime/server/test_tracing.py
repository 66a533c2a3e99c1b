"""Traces: a span a request, what its sequences waited and took in it, and no text."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.runtime.conftest import MakeEngine
from tests.runtime.server.background import MESSAGES, PROMPT, Served, serving
from tokc.runtime.server.service import Service
from tokc.runtime.server.tracing import Tracing, otlp

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(make_engine: MakeEngine, exporter: InMemorySpanExporter) -> Iterator[Served]:
    with (
        closing(Tracing("hash", exporter)) as tracing,
        serving(Service(make_engine(), tracing=tracing)) as running,
    ):
        yield running


def spans_of(served: Served, exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    while not served.service.responses:  # counted when all is written down, after the answer was read
        time.sleep(0.005)
    assert served.service.tracing is not None
    served.service.tracing.close()
    return list(exporter.get_finished_spans())


def test_a_request_is_a_span_with_its_parts_in_order(traced: Served, exporter: InMemorySpanExporter) -> None:
    body = {"messages": MESSAGES, "max_tokens": 5, "ignore_eos": True}
    answer = traced.post("/v1/chat/completions", body, traceparent=PARENT)
    *parts, whole = spans_of(traced, exporter)
    assert whole.name == "POST /v1/chat/completions"
    assert [part.name for part in parts] == ["queue", "prefill", "decode"]
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.usage.output_tokens"] == 5
    assert whole.attributes["tokc.request.id"] == answer.headers["x-request-id"]
    times = [(part.start_time or 0, part.end_time or 0) for part in parts]
    assert all(start <= end for start, end in times)
    assert all(end == start for (_, end), (start, _) in pairwise(times))
    assert (whole.start_time or 0) <= times[0][0]
    assert times[-1][1] <= (whole.end_time or 0)


def test_it_belongs_to_the_trace_of_its_caller(traced: Served, exporter: InMemorySpanExporter) -> None:
    traced.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2}, traceparent=PARENT)
    for span in spans_of(traced, exporter):
        assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]  # type: ignore[union-attr]


def test_every_answer_has_its_parts(traced: Served, exporter: InMemorySpanExporter) -> None:
    traced.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2, "n": 3, "temperature": 1})
    names = [span.name for span in spans_of(traced, exporter)]
    assert names.count("decode") == 3


def test_a_refused_request_is_a_span_without_parts(traced: Served, exporter: InMemorySpanExporter) -> None:
    traced.post("/v1/completions", {"prompt": PROMPT, "temperature": -1})
    [span] = spans_of(traced, exporter)
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 400
    assert span.status.is_ok or span.status.is_unset


def test_no_text_is_in_a_span(traced: Served, exporter: InMemorySpanExporter) -> None:
    prompt = "what nobody else should read"
    answer = traced.post("/v1/completions", {"prompt": prompt, "max_tokens": 8}).json()
    text = "".join(span.to_json() for span in spans_of(traced, exporter))
    assert prompt not in text
    assert answer["choices"][0]["text"] not in text


def test_a_collector_gets_them_over_http(make_engine: MakeEngine) -> None:
    bodies: list[tuple[str, int]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, len(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracing = Tracing("hash", otlp(f"http://127.0.0.1:{server.server_port}/"))
        with closing(tracing), serving(Service(make_engine(), tracing=tracing)) as served:
            served.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
            while not served.service.responses:
                time.sleep(0.005)
        server.shutdown()
    assert bodies
    assert all(path == "/v1/traces" and size > 0 for path, size in bodies)
