"""The parts of a PTX kernel's text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from tests.ptx.faults import Site


@dataclass(frozen=True)
class Register:
    """A register; `index` into the machine's, `bits` 1 for a predicate."""

    name: str
    index: int
    bits: int


@dataclass(frozen=True)
class Immediate:
    """A constant's bits, as a Python integer that may be negative."""

    bits: int


@dataclass(frozen=True)
class Symbol:
    """The name of a parameter, of shared memory or of a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """`[base + offset]`."""

    base: Register | Symbol | None
    offset: int


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`."""

    parts: "tuple[Operand, ...]"


@dataclass(frozen=True)
class Pair:
    """`d|p`: a result and a predicate."""

    first: "Operand"
    second: "Operand"


@dataclass(frozen=True)
class Negated:
    """`!p`."""

    register: Register


Operand = Register | Immediate | Symbol | Address | Vector | Pair | Negated


@dataclass(frozen=True)
class Guard:
    """`@p` or `@!p`."""

    register: Register
    negated: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction: `mul.wide.s32` is opcode `mul` with modifiers `wide` and `s32`."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Guard | None
    site: Site


@dataclass(frozen=True)
class Parameter:
    """One parameter: where it lies in the parameter buffer, in bytes; `pointer` if it is declared as one."""

    name: str
    type: str
    offset: int
    size: int
    pointer: bool


@dataclass(frozen=True)
class Function:
    """A parsed kernel; a label is the index of the instruction that follows it."""

    name: str
    parameters: tuple[Parameter, ...]
    threads: int
    registers: Mapping[str, Register]
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]

    @cached_property
    def undefined(self) -> frozenset[Register]:
        """Return the registers that no instruction writes: an undefined value of the compiler's own."""
        written: set[Register] = set()
        for instruction in self.instructions:
            written.update(_registers(instruction.operands[:1]))
        return frozenset(each for each in self.registers.values() if each not in written)


def _registers(operands: tuple[Operand, ...]) -> Iterator[Register]:
    for operand in operands:
        if isinstance(operand, Register):
            yield operand
        elif isinstance(operand, Vector):
            yield from _registers(operand.parts)
        elif isinstance(operand, Pair):
            yield from _registers((operand.first, operand.second))
