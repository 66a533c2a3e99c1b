"""The engine's counters in Prometheus' text format.

Source: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4.
"""

from collections.abc import Iterator, Mapping

from tokc.runtime.counters import Counters, DraftCounts, Gauges, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(counters: Counters, gauges: Gauges, responses: Mapping[int, int]) -> str:
    """Return every metric, one sample a line; `responses` counts HTTP responses by status."""
    lines = [*_samples(counters, gauges), *_head("tokc_http_responses_total", "counter", "HTTP responses")]
    lines += [f'tokc_http_responses_total{{status="{status}"}} {n}' for status, n in responses.items()]
    return "\n".join([*lines, ""])


def _samples(counters: Counters, gauges: Gauges) -> Iterator[str]:
    totals = {
        "tokc_steps_total": ("steps of the model", counters.steps),
        "tokc_computed_tokens_total": ("tokens computed, prefill and decode", counters.computed_tokens),
        "tokc_prompt_tokens_total": ("prompt tokens of finished requests", counters.prompt_tokens),
        "tokc_cached_tokens_total": ("prompt tokens found in the prefix cache", counters.cached_tokens),
        "tokc_output_tokens_total": ("output tokens of finished requests", counters.output_tokens),
        "tokc_generation_tokens_total": ("output tokens, as they are made", counters.generated_tokens),
        "tokc_prefill_seconds_total": ("time of steps for prompts", counters.prefill_s),
        "tokc_decode_seconds_total": ("time of steps for answers", counters.decode_s),
        "tokc_preemptions_total": ("sequences put back for want of pages", gauges.preemptions),
    }
    for name, (text, value) in totals.items():
        yield from _head(name, "counter", text)
        yield f"{name} {value}"
    yield from _drafts(counters.drafts)
    yield from _head("tokc_requests_finished_total", "counter", "finished requests")
    for reason, count in counters.finished.items():
        yield f'tokc_requests_finished_total{{reason="{reason}"}} {count}'
    states = {
        "tokc_requests_running": ("requests with a place in the batch", gauges.running),
        "tokc_requests_waiting": ("requests in the queue", gauges.waiting),
        "tokc_kv_pages_used": ("pages of the cache in use", gauges.pages_used),
        "tokc_kv_pages": ("pages of the cache", gauges.pages_total),
    }
    for name, (text, value) in states.items():
        yield from _head(name, "gauge", text)
        yield f"{name} {value}"
    yield from _histogram("tokc_ttft_seconds", "time to first token", counters.ttft_s)
    yield from _histogram("tokc_tpot_seconds", "time per output token after the first", counters.tpot_s)


def _drafts(drafts: DraftCounts) -> Iterator[str]:
    """Yield what vLLM counts of drafts; rate and mean length of acceptance are quotients of these."""
    name = "tokc_spec_decode_num_{}_total"
    for what, text, value in (
        ("drafts", "drafts that were verified", drafts.drafts),
        ("draft_tokens", "drafted tokens that were verified", drafts.verified),
        ("accepted_tokens", "drafted tokens that held", drafts.accepted),
    ):
        yield from _head(name.format(what), "counter", text)
        yield f"{name.format(what)} {value}"
    by_place = name.format("accepted_tokens_per_pos")
    yield from _head(by_place, "counter", "drafted tokens that held, by place in the draft")
    yield from (f'{by_place}{{position="{place}"}} {n}' for place, n in enumerate(drafts.accepted_at))


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _histogram(name: str, text: str, histogram: Histogram) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        yield f'{name}_bucket{{le="{bound}"}} {below}'
    yield f'{name}_bucket{{le="+Inf"}} {histogram.count}'
    yield f"{name}_sum {histogram.total}"
    yield f"{name}_count {histogram.count}"
