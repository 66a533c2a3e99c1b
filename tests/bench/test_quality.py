"""The table of quality: its rows parse, go on where a run ended, and are written as they were measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import quality
from bench.quality_rows import PEER, ROWS, weights
from bench.quality_text import HEADS, markdown
from tests.reading_model import reading_folder
from tokc.passes.quantize_weights import QuantizeWeights
from tokc.pipeline import Pipeline


def test_every_row_is_a_pipeline_under_a_name_of_its_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        if row.passes.startswith(PEER):
            continue
        passes = Pipeline.parse(row.passes).passes
        for one in passes:
            if isinstance(one, QuantizeWeights):
                bits = one.budget if one.bits == "auto" else one.bits
                assert (bits, one.group, one.head_bits) == (float(row.bits), row.group, row.head_bits)
                assert row.library or (one.method in row.method and one.method in row.name)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[quality.Rows, np.ndarray]:
    """Return a row of a tiny model."""
    base = tmp_path_factory.mktemp("quality")
    model = reading_folder(base / "tiny", max_position_embeddings=1024)
    windows = np.random.default_rng(0).integers(0, 256, (3, 64))
    kept = quality.Kept(base / "reference.f32", model, windows, 264)
    row = weights("rtn", 8)
    rows = {row.name: quality.measured(row, model, base, windows, kept)}
    quality.time_in_turns(rows, base, 2)
    return rows, windows


def test_a_row_is_built_scored_and_timed(measured: tuple[quality.Rows, np.ndarray]) -> None:
    row = measured[0]["rtn-w8"]
    assert 0 < row["divergence"]["kl_mean"]["figure"] < 0.01
    assert row["divergence"]["ppl_ratio"]["low"] < row["divergence"]["ppl_ratio"]["figure"]
    assert row["weight_bytes"] < row["bytes"]
    assert row["decode_tokens_per_s"]["rounds"] == 2


def test_the_table_says_what_was_measured(measured: tuple[quality.Rows, np.ndarray]) -> None:
    page = markdown(quality.content(*measured))
    (line,) = [line for line in page.splitlines() if line.startswith("| rtn ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == len(HEADS)
    ratio = measured[0]["rtn-w8"]["divergence"]["ppl_ratio"]
    assert cells[:3] == ["rtn", "8", "32"]
    assert cells[3] == f"{ratio['figure']:.4f} ({ratio['low']:.4f}–{ratio['high']:.4f})"
    assert "3 windows of 64 tokens" in " ".join(page.split())


def test_a_later_run_keeps_rows_whose_pipeline_is_the_same(
    measured: tuple[quality.Rows, np.ndarray], tmp_path: Path
) -> None:
    path, found = tmp_path / "quality.json", quality.content(*measured)
    path.write_text(json.dumps(found))
    assert set(quality.earlier(path, (3, 64))) == {"rtn-w8"}
    with pytest.raises(SystemExit, match="has rows over 192 tokens, not 256"):
        quality.earlier(path, (4, 64))
    found["rows"]["rtn-w8"]["passes"] += ",fold-constants"
    path.write_text(json.dumps(found))
    assert quality.earlier(path, (3, 64)) == {}
