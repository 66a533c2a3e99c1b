"""What `tokc inspect` prints of an artifact that XLA runs: its steps, and what was verified."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

INDEX = Path("kernels") / "xla.json"


def has_steps(artifact: Path) -> bool:
    """Return whether an artifact holds whole steps for XLA in place of a plan."""
    return (artifact / INDEX).is_file()


def memory(artifact: Path) -> str:
    """Return what the largest step needs on one chip beside the weights, or that nobody knows yet."""
    from tokc.report import units

    index = _index(artifact)
    known = [bucket["temporary_bytes"] for bucket in index["buckets"] if "temporary_bytes" in bucket]
    steps = f"{len(index['buckets'])} sizes of a step, each one function"
    if not known:
        return f"{steps}; XLA compiles them when the artifact is loaded"
    chips = f" on each of {index['chips']} chips" if index["chips"] > 1 else ""
    return f"{units.scaled(max(known), 'B')} of temporaries{chips}; {steps}"


def tables(artifact: Path) -> "tuple[Table, Table]":
    """Return a table of the steps, and one of what was verified how."""
    from rich.table import Table

    index = _index(artifact)
    steps = Table("step", box=None, pad_edge=False, header_style="dim")
    for column in ("tokens", "sequences", "arguments", "temporaries", "code"):
        steps.add_column(column, justify="right")
    steps.add_column("kernels and collectives")
    for bucket in index["buckets"]:
        steps.add_row(*_row(bucket))
    verified = Table("part", "verified", box=None, pad_edge=False, header_style="dim")
    for part, how in index["verification"].items():
        verified.add_row(part, how)
    return steps, verified


def _row(bucket: dict[str, Any]) -> list[str]:
    from tokc.report import units

    sizes = [
        units.scaled(bucket[f"{name}_bytes"], "B") if f"{name}_bytes" in bucket else "–"
        for name in ("argument", "temporary", "code")
    ]
    pallas = bucket.get("custom_calls", {}).get("tpu_custom_call", 0)
    calls = {**({"Pallas kernel": pallas} if pallas else {}), **bucket.get("collectives", {})}
    said = ", ".join(f"{count} x {name}" for name, count in calls.items()) or "–"
    return [bucket["file"], str(bucket["tokens"]), str(bucket["seqs"]), *sizes, said]


def _index(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / INDEX).read_text())
    return found
