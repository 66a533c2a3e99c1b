"""A build measured after each pass: real code of every prefix, and what has none says why."""

from datetime import date
from pathlib import Path

import pytest

from tests.exporters.texts import byte_level, save_tokenizer
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build
from tokc.cost import records
from tokc.pass_measuring import measure_passes, pipeline_until
from tokc.report import collect, html
from tokc.report.quality import ledger_of, rates_of, rates_path

SPECS = ("fold-constants{limit=1024}", "fuse-linear", "kv-layout{page=16 dtype=f16}", "eliminate-dead-code")


def test_the_cache_layout_is_borrowed_from_later() -> None:
    borrowed = "fold-constants{limit=1024},fuse-linear,kv-layout{page=16 dtype=f16},eliminate-dead-code"
    assert pipeline_until(SPECS, 2) == borrowed
    assert pipeline_until(SPECS, 3).count("kv-layout") == 1


@pytest.mark.slow
def test_rates_are_of_the_passes_that_have_code(tmp_path: Path) -> None:
    model = tiny_folder("llama", tmp_path / "model", head_dim=32, vocab_size=512)
    save_tokenizer(byte_level("gpt2"), model)
    request = Request(model, check=False)
    made = build(request, tmp_path / "tiny.tokc")
    changed = [number for number, row in enumerate(made.ledger, start=1) if row.changed]
    quantized = next(n for n, row in enumerate(made.ledger, start=1) if "quantize" in row.pass_spec)
    found = measure_passes(request, made.artifact, [changed[0], quantized, 99], lambda _: None)
    assert found is not None
    assert [row.number for row in found.rows] == [changed[0], quantized]
    by_name = {row.pass_spec.partition("{")[0]: row for row in found.rows}
    assert by_name["quantize-weights"].tokens_per_s is not None
    assert all((row.tokens_per_s is None) == (row.reason is not None) for row in found.rows)
    assert not list(tmp_path.glob(".tiny*"))
    records.write(rates_path(made.artifact), found)
    assert rates_of(made.artifact) == found
    shown = {row.pass_spec.partition("{")[0]: row.tokens_per_s for row in ledger_of(made.artifact)}
    assert shown["quantize-weights"] == by_name["quantize-weights"].tokens_per_s
    report = collect.collect(made.artifact, None, date(2026, 11, 25))
    assert "measured" in html.render(report)
