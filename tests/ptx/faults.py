"""What can go wrong when PTX is executed.

Unsupported            the text says what this emulator does not execute
Fault                  the program is wrong
├── BadArguments       the parameter buffer does not have the size that the kernel declares
├── OutOfBounds        an access leaves its allocation, or the kernel's shared memory
├── Misaligned         an address is no multiple of the access' width
├── Race               threads touch a byte, one writing it, and nothing orders them
├── UninitializedRead  a byte of shared memory is read before it is written
├── UndefinedRegister  a register is read before it is written, or while a wgmma still writes it
├── DivergentBarrier   some threads of a CTA reach a barrier or a collective instruction, others do not
└── DivergentBranch    threads of one CTA take different ways
"""

from dataclasses import dataclass

Index = tuple[int, int, int]


class Unsupported(Exception):
    """An instruction, modifier or directive that is not executed."""

    def __init__(self, problem: str, line: int | None = None, text: str = "") -> None:
        self.line = line
        super().__init__(problem if line is None else f"line {line}: {problem}: '{text}'")


@dataclass(frozen=True)
class Site:
    """Where in a kernel; `line` of the PTX text from 1, `source` as `file:line` where the text says so."""

    kernel: str
    line: int
    text: str
    source: str | None

    def __str__(self) -> str:
        source = "" if self.source is None else f", from {self.source}"
        return f"{self.kernel}, line {self.line}{source}: {self.text}"


class Fault(Exception):
    """A wrong program; `lane` counts through the CTAs that ran together, `thread` within its own."""

    def __init__(self, problem: str, *, lane: int | None = None, address: int | None = None) -> None:
        self.problem = problem
        self.lane = lane
        self.address = address
        self.site: Site | None = None
        self.cta: Index | None = None
        self.thread: int | None = None
        super().__init__(problem)

    def __str__(self) -> str:
        """Return the problem, then where, who and which address."""
        parts = [self.problem]
        if self.address is not None:
            parts.append(f"address: {self.address:#x}")
        if self.cta is not None:
            parts.append(f"cta: {self.cta}, thread: {self.thread}")
        if self.site is not None:
            parts.append(f"at: {self.site}")
        return "\n  ".join(parts)


class BadArguments(Fault):
    """The parameter buffer does not have the size that the kernel declares."""


class OutOfBounds(Fault):
    """An access leaves its allocation, or the kernel's shared memory."""


class Misaligned(Fault):
    """An address is no multiple of the access' width."""


class Race(Fault):
    """Threads touch a byte, one writing it, and nothing orders them."""


class UninitializedRead(Fault):
    """A byte of shared memory is read before it is written."""


class UndefinedRegister(Fault):
    """A register is read before it is written, or while a wgmma still writes it."""


class DivergentBarrier(Fault):
    """Some threads of a CTA reach a barrier or a collective instruction, others do not."""


class DivergentBranch(Fault):
    """Threads of one CTA take different ways."""
