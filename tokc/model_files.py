"""The files of a model on their way in: their hashes, and where the artifact made of them goes."""

import hashlib
from functools import cache
from pathlib import Path


def default_out(model: Path) -> Path:
    """Return NAME.tokc in the working folder."""
    name = model.stem if model.is_file() else model.resolve().name
    return Path(f"{name}.tokc")


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, in hexadecimal; an unchanged file is read once a process."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
