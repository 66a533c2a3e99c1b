"""The bill of materials is valid by its own standard, the same every time, and names what is there."""

import json
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.runtime.small_artifact import write_small_artifact
from tokc.artifact.bom import bill_of_materials
from tokc.runtime.artifact import Artifact
from tokc.runtime.manifest import Manifest


def manifest_of(folder: Path) -> Manifest:
    manifest = Artifact.open(write_small_artifact(folder), verify=False).manifest
    return manifest._replace(
        licence="apache-2.0", pipeline="fuse-qkv", provenance={"model.gguf": "ab" * 32, "note": "by hand"}
    )


def test_it_is_valid_cyclonedx(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "small.tokc")
    text = json.dumps(bill_of_materials(manifest, manifest.files))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_it_names_every_file_source_and_library(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "small.tokc")
    bom = bill_of_materials(manifest, manifest.files)
    by_type: dict[str, set[str]] = {}
    for component in bom["components"]:  # type: ignore[attr-defined]
        by_type.setdefault(component["type"], set()).add(component["name"])
    assert by_type["file"] == set(manifest.files)
    assert by_type["data"] == {"model.gguf", "note"}
    assert {"numpy", "tokenizers", "jinja2"} <= by_type["library"]


def test_the_same_artifact_has_the_same_one_and_another_file_another(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path / "small.tokc")
    bom = bill_of_materials(manifest, manifest.files)
    assert bill_of_materials(manifest, manifest.files) == bom
    changed = {**manifest.files, "plan.json": manifest.files["plan.json"]._replace(sha256="0" * 64)}
    assert bill_of_materials(manifest, changed)["serialNumber"] != bom["serialNumber"]
