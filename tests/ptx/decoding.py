"""Turns the parts of an instruction into functions of a machine: where operands come from and go to.

A decoder asks for every modifier that it understands; one that is left over is Unsupported, so that none is
ever ignored.
"""

from collections.abc import Callable

import numpy as np

from tests.ptx.faults import Unsupported
from tests.ptx.machine import Machine, Mask
from tests.ptx.operands import SINK
from tests.ptx.syntax import Address, Immediate, Instruction, Negated, Operand, Pair, Register, Symbol, Vector
from tests.ptx.types import SIGNED, TYPES, UNSIGNED, Array, Type

Source = Callable[[Machine], Array]
Sink = Callable[[Machine, Array, Mask], None]
Run = Callable[[Machine, Mask], None]
Decoder = Callable[["Decoding"], Run]


class Decoding:
    """One instruction, and which of its modifiers are still to be understood."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction
        self.operands = instruction.operands
        self._left = list(instruction.modifiers)

    def refuse(self, problem: str) -> Unsupported:
        """Return the error for this instruction."""
        return Unsupported(problem, self.instruction.site.line, self.instruction.site.text)

    def take(self, *names: str) -> str | None:
        """Take the first modifier that is one of the names."""
        for index, name in enumerate(self._left):
            if name in names:
                return self._left.pop(index)
        return None

    def need(self, *names: str) -> str:
        """Take a modifier that must be there."""
        found = self.take(*names)
        if found is None:
            raise self.refuse(f"one of {', '.join(names)} is expected")
        return found

    def skip(self, *names: str) -> None:
        """Take modifiers that change nothing here."""
        while self.take(*names) is not None:
            pass

    def match(self, prefix: str) -> str | None:
        """Take the first modifier with a prefix."""
        return self.take(*[name for name in self._left if name.startswith(prefix)])

    def type(self) -> Type:
        """Take the last modifier, which must be a type."""
        if not self._left or self._left[-1] not in TYPES:
            raise self.refuse("a type is expected")
        return TYPES[self._left.pop()]

    def finish(self, operands: int | None = None) -> None:
        """Refuse what is left of the modifiers, and another number of operands."""
        if self._left:
            raise self.refuse(f"modifier '.{self._left[0]}' of '{self.instruction.opcode}' is not executed")
        if operands is not None and len(self.operands) != operands:
            raise self.refuse(f"{operands} operands are expected, not {len(self.operands)}")

    def source(self, index: int, kind: Type) -> Source:
        """Return how to read an operand as numbers of a type; an immediate is an array of one."""
        return self.source_of(self.operands[index], kind)

    def source_of(self, operand: Operand, kind: Type) -> Source:
        """Return how to read an operand."""
        if isinstance(operand, Immediate):
            return self._constant(operand, kind)
        if isinstance(operand, Negated):
            register = operand.register
            return lambda machine: ~machine.read(register)
        if not isinstance(operand, Register):
            raise self.refuse(f"operand '{operand}' cannot be read")
        return self._from_register(operand, kind)

    def _constant(self, operand: Immediate, kind: Type) -> Source:
        if kind.kind == "pred":
            truth = np.array([operand.bits != 0])
            return lambda _: truth
        raw = np.array([operand.bits & ((1 << kind.bits) - 1)], UNSIGNED[kind.bits])
        value = kind.decode(raw)
        return lambda _: value

    def _from_register(self, register: Register, kind: Type) -> Source:
        if (register.bits == 1) != (kind.kind == "pred") or register.bits < kind.bits:
            raise self.refuse(f"register '{register.name}' does not hold a {kind.name}")
        if register.bits == kind.bits:
            return lambda machine: kind.decode(machine.read(register))
        narrow = UNSIGNED[kind.bits]
        return lambda machine: kind.decode(machine.read(register).astype(narrow))

    def sink(self, index: int, kind: Type) -> Sink:
        """Return how to write numbers of a type to an operand, which extends them to its width."""
        return self.sink_of(self.operands[index], kind)

    def sink_of(self, operand: Operand, kind: Type) -> Sink:
        """Return how to write an operand; `_` takes anything."""
        if operand == Symbol(SINK):
            return lambda _machine, _value, _mask: None
        if not isinstance(operand, Register):
            raise self.refuse(f"operand '{operand}' cannot be written")
        register = operand
        if (register.bits == 1) != (kind.kind == "pred") or register.bits < kind.bits:
            raise self.refuse(f"register '{register.name}' does not hold a {kind.name}")
        if register.bits == kind.bits:
            return lambda machine, value, mask: machine.write(register, kind.encode(value), mask)
        wide = UNSIGNED[register.bits]
        if kind.kind != "s":
            return lambda machine, value, mask: machine.write(register, kind.encode(value).astype(wide), mask)
        signed = SIGNED[register.bits]
        return lambda machine, value, mask: machine.write(register, value.astype(signed).view(wide), mask)

    def vector(self, index: int) -> tuple[Operand, ...]:
        """Return the parts of `{a, b}`, or the one operand itself."""
        operand = self.operands[index]
        return operand.parts if isinstance(operand, Vector) else (operand,)

    def pair(self, index: int) -> tuple[Operand, Operand | None]:
        """Return the parts of `d|p`; None where there is no predicate."""
        operand = self.operands[index]
        return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)

    def address(self, index: int) -> Callable[[Machine], Array]:
        """Return how to compute the addresses of `[base + offset]`, i64 a lane."""
        operand = self.operands[index]
        if not isinstance(operand, Address) or isinstance(operand.base, Symbol):
            raise self.refuse(f"operand '{operand}' is no address in memory")
        base, offset = operand.base, operand.offset
        if base is None:
            return lambda machine: np.full(machine.lanes, offset, np.int64)
        return lambda machine: machine.read(base).astype(np.int64) + offset

    def immediate(self, index: int) -> int:
        """Return the value of an operand that must be a constant."""
        operand = self.operands[index]
        if not isinstance(operand, Immediate):
            raise self.refuse("a constant operand is expected")
        return operand.bits
