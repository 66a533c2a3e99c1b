"""What `tokc inspect` prints of an artifact for a GPU: what each kernel takes, and what was verified."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

ABI = Path("kernels") / "kernels.json"
PLAN = "plan.json"
COLUMNS = ("warps", "registers", "spilled", "shared", "occupancy", "matrix", "16-byte loads")


def has_kernels(artifact: Path) -> bool:
    """Return whether an artifact holds kernels of a GPU."""
    return (artifact / ABI).is_file()


def tables(artifact: Path) -> "tuple[Table, Table]":
    """Return a table of the kernels, read from their code, and one of what was verified how."""
    from rich.table import Table

    found: dict[str, Any] = json.loads((artifact / ABI).read_text())
    kernels = Table("kernel", box=None, pad_edge=False, header_style="dim")
    for column in COLUMNS:
        kernels.add_column(column, justify="right")
    for kernel in found["kernels"]:
        kernels.add_row(kernel["symbol"], *_cells(kernel))
    verified = Table("part", "verified", box=None, pad_edge=False, header_style="dim")
    for part, how in found["verification"].items():
        verified.add_row(part, how)
    return kernels, verified


def ranks(artifact: Path) -> str:
    """Return how many devices run a step together and what moves between them, "" where one does."""
    found: dict[str, Any] = json.loads((artifact / ABI).read_text())
    if found.get("ranks", 1) == 1:
        return ""
    launches = json.loads((artifact / PLAN).read_text())["launches"]
    meetings = [launch for launch in launches if "collective" in launch]
    parts = []
    for steps in ("narrow", "wide"):
        of = [launch for launch in meetings if launch["steps"] in {"all", steps}]
        counts = Counter(launch["collective"] for launch in of)
        each = {
            rows: sum(_link_bytes(one) for one in of if one["rows"] == rows) for rows in ("tokens", "rows")
        }
        moved = f"{each['tokens'] / 1e3:.4g} kB a token and {each['rows'] / 1e3:.4g} kB a row of logits"
        named = ", ".join(f"{count} {name.replace('_', '-')}" for name, count in sorted(counts.items()))
        parts.append(f"a {steps} step {named}: {moved} leave each")
    return "\n".join([f"{found['ranks']} devices, one rank each", *parts])


def _link_bytes(launch: dict[str, Any]) -> float:
    return float(launch["work"].get("link_bytes", 0.0))


def _cells(kernel: dict[str, Any]) -> list[str]:
    from tokc.report import units

    r = kernel["resources"]
    return [
        str(kernel["warps"]),
        str(r["registers"]),
        units.scaled(r["spill_bytes"], "B"),
        units.scaled(r["shared_bytes"], "B"),
        f"{r['occupancy']:.0%} ({r['limit']})",
        str(r["matrix"]),
        f"{r['wide_loads']} of {r['loads']}",
    ]
