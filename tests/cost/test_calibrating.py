"""A calibration and a grid of a real artifact: kernels of a tiny model, timed on this machine."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.exporters.texts import byte_level, save_tokenizer
from tests.report.sample import write_artifact
from tests.tiny_models import tiny_folder
from tokc.compiler import Request, build, precision
from tokc.cost import calibrating, grid, records
from tokc.cost.calibrating import calibrate
from tokc.cost.calibration import Calibration, calibration_path
from tokc.cost.grid import measure_grid
from tokc.errors import TokcError, UnknownOption
from tokc.report.collect import manifest_sha256
from tokc.report.prediction import compared, grid_of, grid_path, machine_for, predict


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    sizes = {"max_position_embeddings": 2048, "head_dim": 32, "vocab_size": 512}
    model = tiny_folder("llama", folder / "model", **sizes)
    save_tokenizer(byte_level("gpt2"), model)
    request = Request(model, precision=precision("int4", None), check=False, context=1280)
    return build(request, folder / "tiny.tokc").artifact


@pytest.fixture(scope="module")
def calibration(artifact: Path) -> Calibration:
    return calibrate([artifact], 0.0, 1, lambda _: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibration: Calibration) -> Iterator[Calibration]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    records.write(calibration_path(calibration.device), calibration)
    return calibration


def test_every_kind_of_the_plan_is_fitted_and_every_step_has_its_error(calibration: Calibration) -> None:
    kinds = {one.kind.partition(" ")[0] for one in calibration.efficiencies.kinds}
    assert {"QuantLinear", "PagedAttention", "AddRmsNorm", "GatedActivation"} <= kinds
    assert len(calibration.steps) == len(calibrating.DECODES) + len(calibrating.CHUNKS)
    assert calibration.efficiencies.engine_s > 0
    assert all(step.measured_s > 0 for step in calibration.steps)


def test_a_calibration_survives_its_file(calibration: Calibration, tmp_path: Path) -> None:
    records.write(tmp_path / "c.json", calibration)
    assert records.read(Calibration, tmp_path / "c.json") == calibration


def test_predictions_here_are_those_of_the_calibration(artifact: Path, here: Calibration) -> None:
    machine = machine_for(artifact, None)
    assert machine.efficiencies == here.efficiencies
    found = predict(artifact, machine, None)
    assert found.basis.startswith("calibrated on")
    assert [one.chunk for one in found.reading] == [16, 64, 128, 256, 512]


def test_a_grid_is_held_against_predictions(
    artifact: Path, here: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "CONTEXTS", (64, 512))
    found = measure_grid(artifact, manifest_sha256(artifact), 1, 1, lambda _: None)
    assert [(cell.batch, cell.context) for cell in found.cells[:2]] == [(1, 64), (2, 64)]
    assert all(0 < cell.token_s <= cell.median_s and cell.steps >= 8 for cell in found.cells)
    assert grid_of(artifact) is None
    records.write(grid_path(artifact), found)
    assert grid_of(artifact) == found
    comparison = compared(artifact, found)
    first = comparison.cells[0]
    assert first.error == pytest.approx(first.predicted_s / first.measured_s - 1)
    assert comparison.worst_error >= comparison.mean_error > 0
    assert first.calibrated_s is not None
    slower = [replace(cell, read_bytes_per_s=(cell.read_bytes_per_s or 0) / 2) for cell in found.cells]
    for full, halved in zip(
        comparison.cells, compared(artifact, replace(found, cells=tuple(slower))).cells, strict=True
    ):
        assert full.predicted_s < halved.predicted_s <= 2 * full.predicted_s
        assert full.calibrated_s == halved.calibrated_s
        assert full.read_bytes_per_s == 2 * (halved.read_bytes_per_s or 0.0)
    assert predict(artifact, machine_for(artifact, None), None).comparison == comparison


def test_a_grid_needs_room_for_its_contexts(artifact: Path) -> None:
    with pytest.raises(TokcError, match="the grid needs 4160 tokens of context"):
        measure_grid(artifact, manifest_sha256(artifact), 1, 1, lambda _: None)


def test_an_artifact_of_another_target_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["target"] |= {"kind": "cuda", "device": "sm_90"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnknownOption, match="these are for cuda:sm_90"):
        calibrate([path], 1.0, None, lambda _: None)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
