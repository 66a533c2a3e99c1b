"""Where a user's caches belong."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return tokc's folder in the user's cache (XDG_CACHE_HOME, else ~/.cache)."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(stated) if Path(stated).is_absolute() else Path.home() / ".cache"
    return base / "tokc"
