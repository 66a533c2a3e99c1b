"""Writes a JSON line for each request: who used how much (usage), and what was asked of the server (audit).

No line holds a prompt, an answer or a key.
"""

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tokc.errors import TokcError
from tokc.runtime.server.errors import Json

log = logging.getLogger("tokc.server")


class JsonLines:
    """Appends whole lines to a file; a full disk loses lines, not requests."""

    def __init__(self, path: Path) -> None:
        """Open for appending; who can read it is the owner's business.

        Raises: TokcError if it cannot be written.
        """
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TokcError(f"the log cannot be written: {error}", where=str(path)) from error
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def write(self, **fields: object) -> None:
        """Append a line that begins with the time."""
        body: Json = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        line = json.dumps(body, separators=(",", ":")) + "\n"
        try:
            os.write(self._file, line.encode())
        except OSError as error:
            if not self.lost:
                log.warning("a log line was lost: %s", error)
            self.lost += 1
