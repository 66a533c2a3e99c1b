"""What differs between two artifacts, read from their own files and, where both have one, their benches."""

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokc.cost.paired import PairedFigure
from tokc.errors import ArtifactRefused
from tokc.report.diff_figures import Amount, counted, ledger, measured, predicted
from tokc.report.gate_figures import bench_of
from tokc.runtime.artifact import WEIGHTS, Artifact
from tokc.runtime.manifest import Manifest
from tokc.runtime.safetensors import LENGTH_BYTES

MOST_HEADER_BYTES = 100 << 20  # what the format allows


@dataclass(frozen=True)
class Side:
    """One of the two artifacts."""

    path: str
    name: str
    target: str
    tokc_version: str
    manifest_sha256: str


@dataclass(frozen=True)
class Change:
    """A fact that differs; None on the side that does not state it."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class TensorStorage:
    """How a tensor is stored; packed weights are bytes, whose number tells how many bits a weight takes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class TensorChange:
    """A tensor that is stored differently, or on one side only."""

    name: str
    before: TensorStorage | None
    after: TensorStorage | None


@dataclass(frozen=True)
class Diff:
    """All that differs between two artifacts; what is the same on both sides is left out of the changes.

    `figures` are counted or predicted; `bench` is of two benches that were run apart, None if one is missing,
    and `bench_note` says why they may not compare; `paired` is of runs in turns.
    """

    before: Side
    after: Side
    facts: tuple[Change, ...]
    passes: tuple[Change, ...]
    tensors: tuple[TensorChange, ...]
    files: tuple[Change, ...]
    launches: tuple[Amount, ...]
    figures: tuple[Amount, ...]
    quality: tuple[Amount, ...]
    bench: tuple[Amount, ...] | None = None
    bench_note: str | None = None
    paired: tuple[PairedFigure, ...] | None = None
    schema_version: int = 1

    @property
    def same(self) -> bool:
        """Return whether the artifacts hold the same bytes."""
        return self.before.manifest_sha256 == self.after.manifest_sha256


def diff(before: Path, after: Path) -> Diff:
    """Compare two artifacts.

    Raises: TokcError if one is no artifact or a file of it is damaged.
    """
    left, right = (Artifact.open(path, verify=False) for path in (before, after))
    benches = bench_of(before), bench_of(after)
    bench, note = measured(*benches)
    return Diff(
        before=_side(left),
        after=_side(right),
        facts=_changes(_facts(left), _facts(right)),
        passes=_passes(left.manifest.pipeline, right.manifest.pipeline),
        tensors=_tensors(before, after),
        files=_files(left.manifest, right.manifest),
        launches=_launches(before, after),
        figures=(*counted(left, right), *predicted(before, after)),
        quality=ledger(before, after),
        bench=bench,
        bench_note=note,
    )


def _side(artifact: Artifact) -> Side:
    from tokc.report.collect import manifest_sha256

    manifest = artifact.manifest
    return Side(
        path=str(artifact.path),
        name=manifest.name,
        target=f"{manifest.target.kind}:{manifest.target.device}",
        tokc_version=manifest.tokc_version,
        manifest_sha256=manifest_sha256(artifact.path),
    )


def _facts(artifact: Artifact) -> dict[str, str]:
    """Return what the manifest and the configurations state, flat, by dotted names."""
    manifest = artifact.manifest
    parts = {name: getattr(manifest, name)._asdict() for name in ("target", "model", "kv", "limits")}
    whole = {"tokc_version": manifest.tokc_version, "licence": manifest.licence or "not stated", **parts}
    whole["source"] = dict(manifest.provenance)
    for file in ("config.json", "generation_config.json"):
        text = artifact.read_text(file)
        whole[file.removesuffix(".json")] = {} if text is None else json.loads(text)
    return dict(_flat("", whole))


def _flat(prefix: str, value: object) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    names = [*before, *(name for name in after if name not in before)]
    return tuple(
        Change(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    )


def _passes(before: str, after: str) -> tuple[Change, ...]:
    """Return the passes that one pipeline has and the other has not, or has with other options."""
    left, right = ([text for text in side.split(",") if text] for side in (before, after))
    matcher = difflib.SequenceMatcher(a=left, b=right, autojunk=False)
    changes: list[Change] = []
    for tag, start, end, other, last in matcher.get_opcodes():
        if tag != "equal":
            changes += _replaced(left[start:end], right[other:last])
    return tuple(changes)


def _replaced(removed: list[str], added: list[str]) -> list[Change]:
    """Pair what has the same name, so that another option is one change and not two."""
    changes, rest = [], list(added)
    for spec in removed:
        name = spec.partition("{")[0]
        other = next((one for one in rest if one.partition("{")[0] == name), None)
        if other is not None:
            rest.remove(other)
        changes.append(Change(name, spec, other))
    return changes + [Change(spec.partition("{")[0], None, spec) for spec in rest]


def _tensors(before: Path, after: Path) -> tuple[TensorChange, ...]:
    left, right = (stored_tensors(path / WEIGHTS) for path in (before, after))
    names = [*left, *(name for name in right if name not in left)]
    return tuple(
        TensorChange(name, left.get(name), right.get(name))
        for name in names
        if left.get(name) != right.get(name)
    )


def stored_tensors(path: Path) -> dict[str, TensorStorage]:
    """Read the header of a .safetensors file; padding is left out, an absent file has no tensors.

    Raises: ArtifactRefused if the header is damaged.
    """
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > MOST_HEADER_BYTES:
                raise ValueError(f"it is {length} bytes long")
            header = json.loads(file.read(length))
        return {
            name: TensorStorage(
                entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]
            )
            for name, entry in header.items()
            if name != "__metadata__" and not name.startswith("padding.")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactRefused(f"the weights' header is wrong: {error}", where=str(path)) from error


def _files(before: Manifest, after: Manifest) -> tuple[Change, ...]:
    sides = (
        {name: f"{file.bytes} bytes, sha256 {file.sha256[:12]}" for name, file in side.files.items()}
        for side in (before, after)
    )
    return _changes(*sides)


def _launches(before: Path, after: Path) -> tuple[Amount, ...]:
    """Return how often a step launches each kernel, where both have a plan and the numbers differ."""
    left, right = (_launched(path / "plan.json") for path in (before, after))
    if left is None or right is None:
        return ()
    total = Amount.of("launches of a step", "", sum(left.values()), sum(right.values()))
    kernels = sorted(left | right)
    amounts = (Amount.of(kernel, "", left[kernel], right[kernel]) for kernel in kernels)
    return (total, *(amount for amount in amounts if amount.before != amount.after))


def _launched(plan: Path) -> Counter[str] | None:
    if not plan.exists():
        return None
    try:
        value = json.loads(plan.read_text())
        return Counter(
            launch.get("collective") or value["kernels"][launch["kernel"]] for launch in value["launches"]
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ArtifactRefused(f"the plan is damaged: {error!r}", where=str(plan)) from error
