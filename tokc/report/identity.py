"""What ties a measurement to a build."""

import hashlib
from pathlib import Path


def manifest_sha256(artifact: Path) -> str:
    """Return the hash that stands for the whole artifact."""
    return hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
