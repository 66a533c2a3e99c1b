"""Reads what a shared library asks of the machine that loads it: names, libraries and their versions.

Source: System V ABI, "Object Files" and "Dynamic Linking"; 64 bits, little-endian.
"""

import re
import struct
from dataclasses import dataclass

STRINGS, DYNAMIC, DYNAMIC_SYMBOLS = 3, 6, 11
NEEDED, UNDEFINED, WEAK = 1, 0, 2


@dataclass(frozen=True)
class Library:
    """The machine's number, the symbols that others must define, and the libraries that should."""

    machine: int
    undefined: frozenset[str]
    needed: frozenset[str]
    glibc: tuple[int, int]


def read_library(data: bytes) -> Library:
    """Read an ELF file; `glibc` is the newest version asked for."""
    assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * i) for i in range(count)]

    def entries(kind: int, form: str) -> list[tuple[str, tuple[int, ...]]]:
        found = []
        for _, type_, _, _, at, length, link, *_ in sections:
            if type_ == kind:
                strings = sections[link][4]
                found += [(strings, fields) for fields in struct.iter_unpack(form, data[at : at + length])]
        return found

    def text(at: int) -> str:
        return data[at : data.index(b"\0", at)].decode()

    symbols = entries(DYNAMIC_SYMBOLS, "<IBBHQQ")
    asked = {
        text(strings + name)
        for strings, (name, info, _, section, _, _) in symbols
        if name and section == UNDEFINED and info >> 4 != WEAK
    }
    needed = {text(strings + value) for strings, (tag, value) in entries(DYNAMIC, "<QQ") if tag == NEEDED}
    versions = [(int(a), int(b)) for a, b in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", data)]
    return Library(machine, frozenset(asked), frozenset(needed), max(versions))
