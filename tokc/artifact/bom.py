"""The bill of materials of an artifact: what it is, what it was made of and by, and what it needs to run.

Source: cyclonedx.org, specification 1.6 (ECMA-424).
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from importlib import metadata

from tokc.runtime.manifest import FileInfo, Manifest

BOM = "bom.cdx.json"
DISTRIBUTION = "tokc-compiler"
# What made the code of each kind of target; all of them shape the artifact's bytes.
TOOLS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("apache-tvm", "ziglang"),
    "cuda": ("triton",),
    "rocm": ("triton",),
    "tpu": ("jax", "libtpu"),
    "xla": ("jax",),
}
COMMON_TOOLS = ("numpy", "onnx", "onnx-ir")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(.*)")


def bill_of_materials(manifest: Manifest, files: Mapping[str, FileInfo]) -> dict[str, object]:
    """Return the CycloneDX document of an artifact with `files`; the same for the same artifact."""
    content = [_file(name, info.sha256) for name, info in sorted(files.items())]
    draft = {} if manifest.draft is None else {f"draft/{manifest.draft.file}": manifest.draft.sha256}
    sources = [_source(name, digest) for name, digest in sorted({**manifest.provenance, **draft}.items())]
    libraries = [_library(*found) for found in _requirements()]
    digests = "".join(info.sha256 for _, info in sorted(files.items()))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{manifest.name} {digests}')}",
        "version": 1,
        "metadata": {
            "component": _model(manifest),
            "tools": {"components": [_tool(DISTRIBUTION, manifest.tokc_version), *_tools(manifest)]},
        },
        "components": [*content, *sources, *libraries],
        "dependencies": [
            {"ref": "model", "dependsOn": [one["bom-ref"] for one in (*content, *sources, *libraries)]},
        ],
    }


def _model(manifest: Manifest) -> dict[str, object]:
    target = f"{manifest.target.kind}:{manifest.target.device}"
    facts = {"tokc:target": target, "tokc:pipeline": manifest.pipeline, "tokc:kv_dtype": manifest.kv.dtype}
    licence = {"licenses": [{"license": {"name": manifest.licence}}]} if manifest.licence else {}
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        **licence,
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": manifest.model.family,
            }
        },
        "properties": [{"name": name, "value": value} for name, value in facts.items()],
    }


def _file(name: str, digest: str) -> dict[str, object]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(digest)}


def _source(name: str, digest: str) -> dict[str, object]:
    found = {"type": "data", "bom-ref": f"source:{name}", "name": name}
    # A source may be stated otherwise than by a hash.
    return found | (
        {"hashes": _hashes(digest)} if re.fullmatch("[0-9a-f]{64}", digest) else {"description": digest}
    )


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _library(name: str, versions: str) -> dict[str, object]:
    return {
        "type": "library",
        "bom-ref": f"library:{name}",
        "name": name,
        "purl": f"pkg:pypi/{name.lower()}",
        "scope": "required",
        "properties": [{"name": "tokc:requires", "value": versions or "any"}],
    }


def _requirements() -> list[tuple[str, str]]:
    """Return what the runtime's base needs, with the versions that suit it."""
    try:
        stated = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a source tree
        return []
    plain = sorted(line.partition(";")[0].strip() for line in stated if "extra ==" not in line)
    return [(found[1], found[2]) for line in plain if (found := _REQUIREMENT.fullmatch(line))]


def _tools(manifest: Manifest) -> Iterable[dict[str, str]]:
    for name in (*TOOLS.get(manifest.target.kind, ()), *COMMON_TOOLS):
        yield _tool(name, metadata.version(name))


def _tool(name: str, version: str) -> dict[str, str]:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": "application", "name": name, "version": version, "purl": purl}
