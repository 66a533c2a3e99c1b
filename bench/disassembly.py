"""Reads machine code: the loops of a function, and what their instructions are for.

A loop is what a backward branch jumps over; it is innermost if it holds no other. Takes the text of objdump
(GNU's or LLVM's, x86 in AT&T syntax) and LLVM's assembly.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BRANCH = re.compile(r"j[a-z]+|b(\.[a-z]+)?|cbn?z|tbn?z")
# What an instruction is for, by its name; the first that matches.
DOT_PRODUCT = re.compile(r"vpdpbusds?|vpmaddubsw|[su]dot|usdot|[su]mmla|usmmla|tdpb[su][su]d")
MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)\d*[ps]s|fml[as]l?2?")
CONVERT = re.compile(r"vcvt\w+|vpmov[sz]x\w+|fcvt\w+|[su]cvtf|[su]xtl2?|[su]shll2?")
ROUND = re.compile(r"vrndscale\w+|vround\w+|frint\w")
SHIFT_BYTES = re.compile(r"vpsrlw|ushr")
X86_MEMORY = re.compile(r"\(([^)]*)\)")
X86_OPERANDS = re.compile(r",\s*(?![^(]*\))")
READ_ONLY = re.compile(r"cmp[a-z]?|test[a-z]?|prefetch\w*|prfm")
# What a prologue makes a register that addresses the frame: the frame pointer or LLVM's base pointer.
FRAME = re.compile(r"movq?\s+%rsp, ?(%rbp|%rbx)|(?:mov|add)\s+(x29|x19), sp(?:, #\w+)?")
OBJDUMPS = {
    "x86_64": ("objdump", "binutils"),
    "aarch64": ("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu"),
}
PADDING = re.compile(r"nop\w?|xchg|data16|cs")
MATRIX_PRODUCTS = 16 * 16 * 64
F32_BYTES = 4


@dataclass(frozen=True)
class Instruction:
    """One instruction; `target` is where it may branch to."""

    address: int
    name: str
    operands: str
    target: int | None = None

    @property
    def memory(self) -> str | None:
        """Return the address that it reads or writes, without its offset."""
        found = re.search(r"\[([^\]]*)", self.operands) or X86_MEMORY.search(self.operands)
        return found.group(1) if found else None

    @property
    def multiply_adds(self) -> int:
        """Return how many numbers it multiplies and adds, if that is what it does."""
        if self.name.startswith("tdp"):
            return MATRIX_PRODUCTS
        if MULTIPLY_ADD.fullmatch(self.name) and self.name.endswith(("ss", "sd")):
            return 1
        widths = {"zmm": 64, "ymm": 32}
        size = next((width for name, width in widths.items() if f"%{name}" in self.operands), 16)
        return size if DOT_PRODUCT.fullmatch(self.name) else size // F32_BYTES

    @property
    def stores(self) -> bool:
        """Return whether it writes memory."""
        if self.memory is None or READ_ONLY.fullmatch(self.name):
            return False
        if "[" in self.operands:
            return self.name.startswith("st")
        return "(" in X86_OPERANDS.split(self.operands)[-1]

    @property
    def loads(self) -> bool:
        """Return whether it reads memory, prefetches aside."""
        asks = self.name.startswith(("prefetch", "prfm", "lea", "nop"))
        return self.memory is not None and not self.stores and not asks


@dataclass(frozen=True)
class Counts:
    """What a loop's instructions are for."""

    total: int
    products: int
    loads: int
    stores: int
    converts: int
    spills: int

    @property
    def share(self) -> float:
        """Return the part of the instructions that multiplies and adds."""
        return self.products / self.total


@dataclass(frozen=True)
class Loop:
    """An innermost loop and the registers that address its function's frame."""

    instructions: tuple[Instruction, ...]
    frame: frozenset[str]

    def number(self, pattern: re.Pattern[str]) -> int:
        """Return how many instructions have a name of the pattern."""
        return sum(1 for each in self.instructions if pattern.fullmatch(each.name))

    def multiply_adds(self, products: re.Pattern[str]) -> int:
        """Return how many numbers the products multiply and add, in one pass of the loop."""
        return sum(each.multiply_adds for each in self.instructions if products.fullmatch(each.name))

    def spilled(self, instruction: Instruction) -> bool:
        """Return whether the instruction reads or writes the frame."""
        base = (instruction.memory or "").split(",")[0]
        return base in self.frame and (instruction.loads or instruction.stores)

    def counts(self, products: re.Pattern[str]) -> Counts:
        """Count, with `products` as what the loop is there for."""
        each = self.instructions
        return Counts(
            total=len(each),
            products=self.number(products),
            loads=sum(1 for i in each if i.loads and not self.spilled(i)),
            stores=sum(1 for i in each if i.stores and not self.spilled(i)),
            converts=self.number(CONVERT),
            spills=sum(1 for i in each if self.spilled(i)),
        )


def innermost_loops(function: list[Instruction]) -> Iterator[Loop]:
    """Yield the loops that hold no other, in their order."""
    frame = {"%rsp", "sp"}
    for each in function:
        if found := FRAME.fullmatch(f"{each.name} {each.operands}"):
            frame |= {register for register in found.groups() if register}
    places = {each.address: index for index, each in enumerate(function)}
    spans = sorted(
        {
            (places[each.target], index)
            for index, each in enumerate(function)
            if each.target in places and places[each.target] <= index and BRANCH.fullmatch(each.name)
        }
    )
    for low, high in spans:
        if not any((a, b) != (low, high) and low <= a and b <= high for a, b in spans):
            yield Loop(tuple(function[low : high + 1]), frozenset(frame))


def parse_objdump(text: str) -> dict[str, list[Instruction]]:
    """Return the functions of `objdump -d --no-show-raw-insn`."""
    functions: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            functions[header.group(1)] = current = []
        elif found := re.fullmatch(r"\s*([0-9a-f]+):\s+(?:{vex}\s+)?(\S+)\s*(.*?)\s*(?://.*|#\s.*)?", line):
            address, name, operands = found.groups()
            if PADDING.fullmatch(name):
                continue
            target = re.search(r"(?:^|\s|,)(?:0x)?([0-9a-f]+) <", operands)
            current.append(
                Instruction(int(address, 16), name, operands, int(target.group(1), 16) if target else None)
            )
    return functions


def parse_assembly(text: str) -> dict[str, list[Instruction]]:
    """Return the functions of LLVM's assembly; an address is the number of instructions before."""
    lines = [re.sub(r"\s*(//.*|#\s.*)$", "", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line.endswith(":") or (line and not line.startswith("."))]
    places, before = {}, 0
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = before
        else:
            before += 1
    functions: dict[str, list[Instruction]] = {}
    address = 0
    for line in lines:
        if line.endswith(":"):
            if not line.startswith("."):
                functions[line[:-1]] = current = []
            continue
        name, _, operands = line.removeprefix("{vex}").strip().partition("\t")
        label = operands.rpartition(",")[2].strip()
        current.append(Instruction(address, name, operands, places.get(label)))
        address += 1
    return functions


def disassemble(path: Path, architecture: str) -> str:
    """Return objdump's text of an object file for x86_64 or aarch64.

    Raises: FileNotFoundError naming what to install.
    """
    own, package = OBJDUMPS[architecture]
    found = shutil.which(own) or shutil.which("llvm-objdump")
    if found is None:
        raise FileNotFoundError(f"no disassembler for {architecture}: install the Debian package {package}")
    command = [found, "-d", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
