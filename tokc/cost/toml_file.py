"""TOML files that a user writes, read with errors that name them."""

import tomllib
from pathlib import Path
from typing import Any

from tokc.errors import TokcError, UnknownOption


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises: TokcError if it cannot be read; UnknownOption if it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokcError(f"cannot read '{path}': {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnknownOption(f"'{path}' is not TOML: {error}") from error
