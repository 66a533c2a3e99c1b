"""OpenTelemetry traces: a span for each HTTP request and, in it, what each of its sequences waited and took.

Spans are made when a request has ended, from times that are kept anyway: a step pays nothing for them.
They carry the names of the GenAI semantic conventions and no text of a prompt or an answer.
Source: opentelemetry.io/docs/specs/semconv/gen-ai; w3.org/TR/trace-context.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanKind, Tracer

    from tokc.runtime.sequence import Sequence
    from tokc.runtime.server.service import Call

SERVICE = "tokc"
FAILED_FROM = 500
NS = 1e9


class Tracing:
    """Makes the spans of calls and hands them to an exporter."""

    def __init__(self, model: str, exporter: "SpanExporter") -> None:
        """Name the model in every span."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.model = model
        resource = Resource.create({"service.name": SERVICE})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("tokc.server")
        # What a wall clock shows when the clock that times are kept in shows 0.
        self._zero_ns = time.time_ns() - int(time.perf_counter() * NS)

    def trace(self, call: "Call", headers: Mapping[str, str]) -> None:
        """Make the spans of a call that has ended; `headers` may say which trace it belongs to."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        usage = call.usage
        span = self._span(f"{call.method} {call.path}", call.started_s, _parent(headers), SpanKind.SERVER)
        span.set_attributes(
            {
                "http.request.method": call.method,
                "url.path": call.path,
                "http.response.status_code": call.status or FAILED_FROM,
                "gen_ai.provider.name": SERVICE,
                "gen_ai.request.model": self.model,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.response.finish_reasons": call.finish_reasons,
                "tokc.request.id": call.id,
                "tokc.cached_tokens": usage.cached_tokens,
            }
        )
        if (call.status or FAILED_FROM) >= FAILED_FROM:
            span.set_status(Status(StatusCode.ERROR, call.error))
        for sequence in call.sequences:
            self._parts(sequence, set_span_in_context(span))
        span.end(self._at(call.started_s + call.seconds))

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()

    def _parts(self, sequence: "Sequence", parent: "Context") -> None:
        """Make the spans of one sequence: those parts that it came to."""
        ends = (sequence.started_s, sequence.first_token_s, sequence.finished_s)
        begin_s = sequence.submitted_s
        for name, end_s in zip(("queue", "prefill", "decode"), ends, strict=True):
            if end_s is None:
                break
            part = self._span(name, begin_s, parent)
            if name == "prefill":
                part.set_attribute("tokc.prompt_tokens", sequence.prompt_length)
                part.set_attribute("tokc.cached_tokens", sequence.cached_tokens or 0)
            elif name == "decode":
                part.set_attribute("tokc.output_tokens", sequence.output_length)
            part.end(self._at(end_s))
            begin_s = end_s

    def _span(self, name: str, start_s: float, parent: "Context", kind: "SpanKind | None" = None) -> "Span":
        from opentelemetry.trace import SpanKind

        chosen = kind or SpanKind.INTERNAL
        return self._tracer.start_span(name, context=parent, kind=chosen, start_time=self._at(start_s))

    def _at(self, seconds: float) -> int:
        return self._zero_ns + int(seconds * NS)


def otlp(endpoint: str) -> "SpanExporter":
    """Return an exporter by OTLP over HTTP; its headers are OTEL_EXPORTER_OTLP_HEADERS."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def _parent(headers: Mapping[str, str]) -> "Context":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(dict(headers))
