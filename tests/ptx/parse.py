"""Reads the text of a PTX module with one kernel into a `Function`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from tests.ptx.faults import Site, Unsupported
from tests.ptx.operands import Scope, parse_operand, split_operands
from tests.ptx.syntax import Function, Guard, Instruction, Parameter

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s*(\.ptr\b.*?)?\s*([\w$]+)$", re.DOTALL)
SHARED = re.compile(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[\]")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', re.MULTILINE)
LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:.*inlined_at\s+(\d+)\s+(\d+))?")
LABEL = re.compile(r"([\w$]+):(?!:)\s*")
STATEMENT = re.compile(r"(?:@(!?)(\S+)\s+)?([a-z]\w*)((?:\.[\w:]+)*)\s*(.*)", re.DOTALL)
SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


def parse(text: str) -> Function:
    """Return the only kernel of a module; Unsupported says what is not understood."""
    entries = list(ENTRY.finditer(text))
    if len(entries) != 1:
        raise Unsupported(f"the text has {len(entries)} kernels, not 1")
    entry = entries[0]
    threads = re.search(r"\.reqntid\s+(\d+)\s*(?:,\s*1\s*){0,2}(?![\d,])", entry[3])
    if threads is None or int(threads[1]) % 32:
        raise Unsupported(f"'.reqntid' must give one size, a multiple of 32: '{entry[3].strip()}'")
    scope = Scope({found[1] for found in SHARED.finditer(text)})
    body = _Body(entry[1], scope, {found[1]: _basename(found) for found in FILE.finditer(text)})
    body.read(text, entry.end())
    return Function(
        entry[1],
        parameters(entry[2]),
        int(threads[1]),
        scope.registers,
        tuple(body.instructions),
        body.labels,
    )


def parameters(text: str) -> tuple[Parameter, ...]:
    """Lay out a .param list: each at the next multiple of its own size."""
    found: list[Parameter] = []
    end = 0
    for declared in filter(None, (part.strip() for part in text.split(","))):
        match = PARAMETER.match(declared)
        if match is None or match[1][1:] not in SIZES:
            raise Unsupported(f"parameter '{declared}' is not a number")
        size = SIZES[match[1][1:]]
        offset = -(-end // size) * size
        found.append(Parameter(match[3], match[1], offset, size, match[2] is not None))
        end = offset + size
    return tuple(found)


def _basename(match: re.Match[str]) -> str:
    return PurePath(match[3] or match[2]).name


@dataclass
class _Body:
    """The instructions between the braces of a kernel, read line by line."""

    kernel: str
    scope: Scope
    files: dict[str, str]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    source: str | None = None

    def read(self, text: str, start: int) -> None:
        """Read up to the kernel's closing brace."""
        for line, statement in self._statements(text, start):
            if statement.startswith(".reg"):
                self.scope.declare(statement, line)
            elif statement.startswith("."):
                if not statement.startswith(".pragma"):
                    raise Unsupported("unknown directive", line, statement)
            else:
                self.instructions.append(self._instruction(statement, line))

    def _statements(self, text: str, start: int) -> Iterator[tuple[int, str]]:
        line = text.count("\n", 0, start) + 1
        pending = ""
        for raw in text[start:].split("\n"):
            rest = raw.partition("//")[0].strip()
            while rest:
                if not pending:
                    rest, ended = self._structure(rest)
                    if ended:
                        return
                    if not rest:
                        break
                done, semicolon, rest = rest.partition(";")
                pending = f"{pending} {done}".strip()
                rest = rest.strip()
                if semicolon:
                    yield line, " ".join(pending.split())
                    pending = ""
            line += 1
        raise Unsupported(f"kernel '{self.kernel}' has no closing brace")

    def _structure(self, rest: str) -> tuple[str, bool]:
        """Take a source location, labels and braces off the front; tell whether the kernel ended."""
        while rest:
            if rest.startswith(".loc"):
                self._locate(rest)
                return "", False
            label = LABEL.match(rest)
            if label is not None:
                self.labels[label[1]] = len(self.instructions)
                rest = rest[label.end() :]
            elif rest[0] == "{":
                self.scope.enter()
                rest = rest[1:].strip()
            elif rest[0] == "}":
                if self.scope.leave():
                    return "", True
                rest = rest[1:].strip()
            else:
                break
        return rest, False

    def _locate(self, text: str) -> None:
        found = LOC.match(text)
        if found is None:
            raise Unsupported(f"'{text}' is not a source location")
        file, line, outer_file, outer_line = found.groups()
        self.source = f"{self.files.get(file, file)}:{line}"
        if outer_file is not None:
            self.source += f" inlined at {self.files.get(outer_file, outer_file)}:{outer_line}"

    def _instruction(self, statement: str, line: int) -> Instruction:
        match = STATEMENT.fullmatch(statement)
        if match is None:
            raise Unsupported("this is not an instruction", line, statement)
        guard = None
        if match[2] is not None:
            register = self.scope.find(match[2])
            if register is None:
                raise Unsupported(f"unknown register '{match[2]}'", line, statement)
            guard = Guard(register, bool(match[1]))
        try:
            operands = tuple(parse_operand(each, self.scope) for each in split_operands(match[5]))
        except ValueError as error:
            raise Unsupported(str(error), line, statement) from error
        modifiers = tuple(match[4].split(".")[1:])
        return Instruction(
            match[3], modifiers, operands, guard, Site(self.kernel, line, statement, self.source)
        )
