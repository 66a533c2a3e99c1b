"""Reads the operands of an instruction, and the registers that they name."""

import re
from dataclasses import dataclass, field

from tests.ptx.faults import Unsupported
from tests.ptx.shared import SHARED_BASE
from tests.ptx.syntax import Address, Immediate, Negated, Operand, Pair, Register, Symbol, Vector

DECLARED = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
NUMBERED = re.compile(r"(.*?)(\d+)$")
INTEGER = re.compile(r"-?(?:0x[0-9a-fA-F]+|\d+)U?$")
FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
ADDRESS = re.compile(r"([^+\s]+)\s*(?:\+\s*(-?\s*\w+))?")
SPECIAL = re.compile(r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid|%nwarpid")
WIDTHS = {"pred": 1, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "b32": 32, "u32": 32, "s32": 32, "f32": 32,
          "b64": 64, "u64": 64, "s64": 64, "f64": 64, "b8": 8, "f16x2": 32}  # fmt: skip
SINK = "_"


@dataclass
class Scope:
    """The registers declared so far; those of a block in braces hide those outside it."""

    shared: set[str]
    registers: dict[str, Register] = field(default_factory=dict)
    _blocks: list[dict[str, tuple[int, int | None]]] = field(default_factory=lambda: [{}])
    _entered: int = 0
    _names: list[str] = field(default_factory=lambda: [""])

    def enter(self) -> None:
        """Open a block."""
        self._entered += 1
        self._blocks.append({})
        self._names.append(f"{self._entered}:")

    def leave(self) -> bool:
        """Close a block; return whether it was the outermost."""
        self._blocks.pop()
        self._names.pop()
        return not self._blocks

    def declare(self, statement: str, line: int) -> None:
        """Read `.reg .b32 %r<7>` or `.reg .pred p, q`."""
        match = DECLARED.fullmatch(statement)
        if match is None or match[1] not in WIDTHS:
            raise Unsupported("unknown kind of register", line, statement)
        for name in match[2].split(","):
            prefix, _, count = name.strip().rstrip(">").partition("<")
            self._blocks[-1][prefix] = WIDTHS[match[1]], int(count) if count else None

    def find(self, name: str) -> Register | None:
        """Return the register of a name, None if no register is called so."""
        if SPECIAL.fullmatch(name):
            return self._register(name, 32)
        numbered = NUMBERED.fullmatch(name)
        for block, unique in zip(reversed(self._blocks), reversed(self._names), strict=True):
            if name in block and block[name][1] is None:
                return self._register(unique + name, block[name][0])
            if numbered is not None and numbered[1] in block:
                bits, count = block[numbered[1]]
                if count is not None and int(numbered[2]) < count:
                    return self._register(unique + name, bits)
        return None

    def _register(self, name: str, bits: int) -> Register:
        return self.registers.setdefault(name, Register(name, len(self.registers), bits))


def split_operands(text: str) -> list[str]:
    """Split at the commas outside braces and brackets."""
    found, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[") - (char in "}]")
        if char == "," and not depth:
            found.append(current.strip())
            current = ""
        else:
            current += char
    return [*found, current.strip()] if current.strip() else found


def parse_operand(text: str, scope: Scope) -> Operand:
    """Read one operand; ValueError if it is none."""
    if text[0] == "{":
        return Vector(tuple(parse_operand(part, scope) for part in split_operands(text[1:-1])))
    if text[0] == "[":
        return _address(text[1:-1].strip(), scope)
    if "|" in text:
        first, second = text.split("|")
        return Pair(parse_operand(first, scope), parse_operand(second, scope))
    if text[0] == "!":
        found = scope.find(text[1:])
        if found is None:
            raise ValueError(f"unknown register '{text}'")
        return Negated(found)
    return _constant(text, scope) or scope.find(text) or _symbol(text)


def _constant(text: str, scope: Scope) -> Immediate | None:
    if FLOAT.fullmatch(text):
        return Immediate(int("0x" + text[2:], 0))
    if INTEGER.fullmatch(text):
        return Immediate(int(text.rstrip("U"), 0))
    return Immediate(SHARED_BASE) if text in scope.shared else None


def _symbol(text: str) -> Symbol:
    if not re.fullmatch(r"[A-Za-z_$][\w$]*", text):
        raise ValueError(f"operand '{text}' is not understood")
    return Symbol(text)


def _address(text: str, scope: Scope) -> Address:
    match = ADDRESS.fullmatch(text)
    found = None if match is None else parse_operand(match[1], scope)
    if match is None or not isinstance(found, Register | Symbol | Immediate):
        raise ValueError(f"address '{text}' is not understood")
    shift = 0 if match[2] is None else int(match[2].replace(" ", ""), 0)
    return Address(None, found.bits + shift) if isinstance(found, Immediate) else Address(found, shift)
