"""The tiles that matrix products get by default, by architecture: a table made by `make gpu-tiles`.

A weight is of a class by its rows: the fewest, few, a middling number or many. What the table does not have,
an architecture or columns that a tile does not divide, is left to the rule in `linear`.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_suffix(".toml")
FEWEST, FEW, MANY = 1024, 2048, 16384
HEAD = """\
# Made by `make gpu-tiles`: of candidates compiled for an architecture, the pair of the least predicted time.
# A tile is [rows of the weight, columns, warps, stages].
"""


@dataclass(frozen=True)
class Tile:
    """How a program computes: a tile of the weight, [block_n, block_k], the columns in `splits` ranges."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1


@dataclass(frozen=True)
class Row:
    """The tiles of one class of weights, for narrow and for wide steps."""

    architecture: str
    bits: int
    rows: str
    narrow: Tile
    wide: Tile


def class_of(n: int) -> str:
    """Return the class of a weight of n rows."""
    if n <= FEW:
        return "fewest" if n <= FEWEST else "few"
    return "middle" if n < MANY else "many"


def shipped(architecture: str, bits: int, n: int) -> Row | None:
    """Return the row of the table, None if it has none."""
    return _table().get((architecture, bits, class_of(n)))


def shipped_rows() -> tuple[Row, ...]:
    """Return the whole table."""
    return tuple(_table().values())


def table_text(rows: Iterable[Row]) -> str:
    """Return the table as TOML."""
    parts = [
        f'[[tiles]]\narchitecture = "{row.architecture}"\nbits = {row.bits}\nrows = "{row.rows}"\n'
        f"narrow = {_fields(row.narrow)}\nwide = {_fields(row.wide)}\n"
        for row in rows
    ]
    return "\n".join([HEAD, *parts])


def _fields(tile: Tile) -> list[int]:
    return [tile.block_n, tile.block_k, tile.warps, tile.stages]


@cache
def _table() -> Mapping[tuple[str, int, str], Row]:
    if not TABLE.exists():  # it is being made
        return {}
    rows = [
        Row(**{**row, "narrow": Tile(*row["narrow"]), "wide": Tile(*row["wide"])})
        for row in tomllib.loads(TABLE.read_text())["tiles"]
    ]
    return {(row.architecture, row.bits, row.rows): row for row in rows}
