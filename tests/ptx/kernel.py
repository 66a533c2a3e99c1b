"""A kernel read from PTX, ready to be launched."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tests.ptx.counts import Counts
from tests.ptx.faults import BadArguments, Index, Unsupported
from tests.ptx.instructions.table import class_of, decode
from tests.ptx.machine import Machine, Step
from tests.ptx.memory import Memory
from tests.ptx.parse import parse
from tests.ptx.syntax import Function, Instruction, Parameter, Symbol

# So many threads run at once: enough for numpy to be busy, few enough for its arrays to stay in cache.
LANES = 4096


@dataclass(frozen=True)
class Kernel:
    """One kernel; `shared_bytes` is what a launch must give it, which PTX itself does not say."""

    function: Function
    steps: tuple[Step, ...]
    shared_bytes: int

    @property
    def name(self) -> str:
        """Return its name."""
        return self.function.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Return its parameters, each with its type and its offset in the parameter buffer."""
        return self.function.parameters

    @property
    def parameter_bytes(self) -> int:
        """Return the size of the parameter buffer."""
        return max((each.offset + each.size for each in self.parameters), default=0)

    @property
    def threads(self) -> int:
        """Return the number of threads of a CTA."""
        return self.function.threads

    def launch(self, grid: Sequence[int], arguments: bytes, memory: Memory) -> Counts:
        """Run every CTA of a grid of up to three axes; `arguments` is the parameter buffer.

        Raises: a Fault at the first thing that is wrong; memory is then as far as the launch came.
        """
        if len(arguments) != self.parameter_bytes:
            raise BadArguments(
                f"'{self.name}' takes {self.parameter_bytes} bytes of parameters, not {len(arguments)}"
            )
        size = (*grid, 1, 1)[:3]
        ctas: list[Index] = [(x, y, z) for z, y, x in product(*(range(axis) for axis in reversed(size)))]
        memory.begin_launch()
        total = Counts()
        at_once = max(1, LANES // self.threads)
        for start in range(0, len(ctas), at_once):
            machine = Machine(
                self.function, memory, arguments, self.shared_bytes, ctas[start : start + at_once]
            )
            machine.numbers += start
            machine.set_special((size[0], size[1], size[2]))
            total.add(self._run(machine))
        return total

    def _run(self, first: Machine) -> Counts:
        waiting = [first]
        while waiting:
            machine = waiting.pop()
            other = machine.run(self.steps)
            if other is not None:
                waiting += [machine, other]
        return first.finish_counts()


def load(text: str, shared_bytes: int) -> Kernel:
    """Read the only kernel of a PTX module; Unsupported names what cannot be executed, and its line."""
    function = parse(text)
    steps = tuple(_step(instruction, function) for instruction in function.instructions)
    return Kernel(function, steps, shared_bytes)


def _step(instruction: Instruction, function: Function) -> Step:
    name = class_of(instruction)
    if instruction.opcode in {"ret", "exit"}:
        return Step(None, instruction.guard, len(function.instructions), name)
    if instruction.opcode != "bra":
        return Step(decode(instruction), instruction.guard, 0, name)
    target = instruction.operands[0]
    if not isinstance(target, Symbol) or target.name not in function.labels:
        raise Unsupported("unknown label", instruction.site.line, instruction.site.text)
    return Step(None, instruction.guard, function.labels[target.name], name)
