"""The manifest of an artifact: what it holds, for which machine, and the hash of every file."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from tokc.errors import ArtifactRefused

SCHEMA_VERSION = 1
DRAFT = "draft"  # the folder of an artifact's draft, and its key in the manifest
_KV_ITEM_BYTES = {"f32": 4.0, "f16": 2.0, "int8": 1.0, "int4": 0.5}
_KV_SCALE_BYTES = {"int8": 4, "int4": 2}

_T = TypeVar("_T")


class TargetInfo(NamedTuple):
    """State the machine of the kernels; `arch` as `uname -m` says it, `library` a file in kernels/.

    `schedule` is how they go about their work where `tokc tune-kernels` chose it.
    """

    kind: str
    device: str
    arch: str
    features: tuple[str, ...]
    library: str
    schedule: Mapping[str, int] = {}


class ModelInfo(NamedTuple):
    """State the model's architecture and the tokens that its text needs; sizes in elements.

    `special_tokens` maps the names that chat templates use (`bos_token`, `eos_token`, ...) to their text.
    """

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = {}


class KvInfo(NamedTuple):
    """State the layout of the paged cache; `page` in tokens, `dtype` f32, f16, int8 or int4."""

    page: int
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def bytes_per_token(self) -> float:
        """Return what one token takes in the cache of all layers, scales included."""
        head_bytes = self.head_dim * _KV_ITEM_BYTES[self.dtype] + _KV_SCALE_BYTES.get(self.dtype, 0)
        return 2 * self.layers * self.kv_heads * head_bytes


class LimitsInfo(NamedTuple):
    """Bound a sequence (`context`, tokens) and a step (`max_tokens_per_step`, `max_rows` logit rows)."""

    context: int
    max_tokens_per_step: int
    max_rows: int


class DraftInfo(NamedTuple):
    """State what drafts tokens: an eagle, or medusa with so many `heads`.

    `vocab` is how many tokens it drafts from; `kv_heads` are those of its one layer's cache, 0 without one.
    `acceptance` is the share of drafted tokens that held on text held out of its training, None if that is
    not known. `file` and `sha256` name the heads that it was built from.
    """

    kind: str
    vocab: int
    heads: int
    kv_heads: int
    file: str
    sha256: str
    acceptance: float | None = None


class FileInfo(NamedTuple):
    """State the contents of one file."""

    sha256: str
    bytes: int


class Manifest(NamedTuple):
    """Describe an artifact; `pipeline` is its passes as text, `provenance` the sha256 of each source.

    `calibration` says which text its weights were fitted to, if they were: name, size and sha256. `draft` is
    None, and its key absent, where nothing drafts.
    """

    tokc_version: str
    name: str
    target: TargetInfo
    model: ModelInfo
    kv: KvInfo
    limits: LimitsInfo
    files: Mapping[str, FileInfo] = {}
    pipeline: str = ""
    licence: str | None = None
    provenance: Mapping[str, str] = {}
    calibration: Mapping[str, str] = {}
    draft: DraftInfo | None = None

    @property
    def weight_bytes(self) -> int:
        """Return the size of the files of tensors."""
        return sum(file.bytes for name, file in self.files.items() if name.endswith(".safetensors"))

    def to_json(self) -> dict[str, object]:
        """Return what `manifest.json` holds."""
        parts = {name: getattr(self, name)._asdict() for name in ("target", "model", "kv", "limits")}
        files = {name: file._asdict() for name, file in self.files.items()}
        whole = {"schema_version": SCHEMA_VERSION, **self._asdict(), **parts, "files": files}
        del whole[DRAFT]
        if not self.target.schedule:
            del parts["target"]["schedule"]
        return whole | ({} if self.draft is None else {DRAFT: self.draft._asdict()})

    @classmethod
    def parse(cls, text: str | bytes, where: str = "manifest.json") -> "Manifest":
        """Read the text of a `manifest.json`.

        Raises: ArtifactRefused if it is not JSON, of another schema, lacks a key or has one of another type.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ArtifactRefused(f"the manifest is not JSON: {error}", where=where, hint=_REBUILD) from error
        root = _Reader(value, where, "")
        version = root.get("schema_version", int)
        if version != SCHEMA_VERSION:
            raise ArtifactRefused(
                f"the artifact has schema version {version}, this runtime reads {SCHEMA_VERSION}",
                where=where,
                hint="rebuild it with this version of tokc, or use the version that built it",
            )
        return cls(
            tokc_version=root.get("tokc_version", str),
            name=root.get("name", str),
            target=_target(root.child("target")),
            model=_model(root.child("model")),
            kv=_kv(root.child("kv")),
            limits=_limits(root.child("limits")),
            files=_files(root.child("files")),
            pipeline=root.get("pipeline", str),
            licence=root.optional("licence", str),
            provenance=root.table("provenance", str),
            calibration=root.table("calibration", str) if "calibration" in root.value else {},
            draft=_draft(root.child(DRAFT)) if root.value.get(DRAFT) is not None else None,
        )


_REBUILD = "the artifact is damaged; copy or build it again"


class _Reader:
    """Reads typed keys of one JSON object, so that every refusal names the key."""

    def __init__(self, value: object, where: str, prefix: str) -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(value, dict):
            raise self.refuse(f"'{prefix.rstrip('.') or 'the manifest'}' is no object")
        self.value: dict[str, object] = value

    def refuse(self, problem: str) -> ArtifactRefused:
        return ArtifactRefused(problem, where=self.where, hint=_REBUILD)

    def get(self, key: str, kind: type[_T]) -> _T:
        if key not in self.value:
            raise self.refuse(f"the manifest lacks '{self.prefix}{key}'")
        return self._typed(key, self.value[key], kind)

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        return None if self.value.get(key) is None else self.get(key, kind)

    def row(self, key: str, kind: type[_T]) -> tuple[_T, ...]:
        items: list[object] = self.get(key, list)
        return tuple(self._typed(f"{key}[{index}]", item, kind) for index, item in enumerate(items))

    def table(self, key: str, kind: type[_T]) -> dict[str, _T]:
        items: dict[str, object] = self.get(key, dict)
        return {name: self._typed(f"{key}.{name}", item, kind) for name, item in items.items()}

    def child(self, key: str) -> "_Reader":
        return _Reader(self.get(key, dict), self.where, f"{self.prefix}{key}.")

    def _typed(self, key: str, value: object, kind: type[_T]) -> _T:
        if not isinstance(value, kind) or isinstance(value, bool):
            found = type(value).__name__
            raise self.refuse(f"'{self.prefix}{key}' of the manifest is {found}, not {kind.__name__}")
        return value


def _target(reader: _Reader) -> TargetInfo:
    return TargetInfo(
        kind=reader.get("kind", str),
        device=reader.get("device", str),
        arch=reader.get("arch", str),
        features=reader.row("features", str),
        library=reader.get("library", str),
        schedule=reader.table("schedule", int) if "schedule" in reader.value else {},
    )


def _model(reader: _Reader) -> ModelInfo:
    sizes = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab")
    return ModelInfo(
        family=reader.get("family", str),
        **{name: reader.get(name, int) for name in sizes},
        bos_token_id=reader.optional("bos_token_id", int),
        eos_token_ids=reader.row("eos_token_ids", int),
        special_tokens=reader.table("special_tokens", str),
    )


def _kv(reader: _Reader) -> KvInfo:
    return KvInfo(
        page=reader.get("page", int),
        dtype=reader.get("dtype", str),
        layers=reader.get("layers", int),
        kv_heads=reader.get("kv_heads", int),
        head_dim=reader.get("head_dim", int),
    )


def _limits(reader: _Reader) -> LimitsInfo:
    return LimitsInfo(
        context=reader.get("context", int),
        max_tokens_per_step=reader.get("max_tokens_per_step", int),
        max_rows=reader.get("max_rows", int),
    )


def _draft(reader: _Reader) -> DraftInfo:
    return DraftInfo(
        kind=reader.get("kind", str),
        vocab=reader.get("vocab", int),
        heads=reader.get("heads", int),
        kv_heads=reader.get("kv_heads", int),
        file=reader.get("file", str),
        sha256=reader.get("sha256", str),
        acceptance=reader.optional("acceptance", float),
    )


def _files(reader: _Reader) -> dict[str, FileInfo]:
    files = {}
    for path in reader.value:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or str(parts) != path:
            raise reader.refuse(f"the manifest names a file outside the artifact: '{path}'")
        entry = reader.child(path)
        files[path] = FileInfo(sha256=entry.get("sha256", str), bytes=entry.get("bytes", int))
    return files
