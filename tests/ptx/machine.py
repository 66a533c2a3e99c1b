"""CTAs that run in lock-step: all their threads are at one instruction.

A branch that CTAs take differently splits the machine in two; threads of one CTA may not diverge.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tests.ptx.counts import Counts
from tests.ptx.faults import DivergentBarrier, DivergentBranch, Fault, Index, UndefinedRegister
from tests.ptx.memory import Memory
from tests.ptx.shared import SharedMemory
from tests.ptx.syntax import Function, Guard, Register
from tests.ptx.types import UNSIGNED, Array

WARP = 32
WARPGROUP = 128
Mask = npt.NDArray[np.bool_] | None
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """A decoded instruction; `run` is None for a branch to `target`, or past the end for an exit."""

    run: "Callable[[Machine, Mask], None] | None"
    guard: Guard | None
    target: int
    name: str


@dataclass
class Copy:
    """A cp.async that was issued: rows of shared memory and the bytes that they get, [lanes, width]."""

    rows: Indices
    value: npt.NDArray[np.uint8]
    lanes: Indices


@dataclass
class Products:
    """A group of wgmma: registers and what they get, the rows of shared memory and the registers it reads."""

    results: dict[int, Array] = field(default_factory=dict)
    operands: dict[int, Array | None] = field(default_factory=dict)
    rows: list[Indices] = field(default_factory=list)


def place(raw: Array) -> int:
    """Return where bits lie in this process' memory, which a copy of a register shares."""
    return int(raw.__array_interface__["data"][0])


class Machine:
    """The state of some CTAs of one launch."""

    def __init__(
        self, function: Function, memory: Memory, parameters: bytes, shared_bytes: int, ctas: Sequence[Index]
    ) -> None:
        self.function = function
        self.memory = memory
        self.parameters = parameters
        self.ctas = list(ctas)
        self.lanes = function.threads * len(ctas)
        self.registers: list[Array | None] = [None] * len(function.registers)
        self.shared = SharedMemory(len(ctas), shared_bytes)
        self.pc = 0
        self.counts = Counts()
        self.sectors: dict[str, list[Indices]] = {"load": [], "store": []}
        self.copies: list[Copy] = []
        self.copy_groups: deque[list[Copy]] = deque()
        self.fenced: dict[int, Array] = {}
        self.products = Products()
        self.product_groups: deque[Products] = deque()
        self.numbers = np.arange(len(ctas), dtype=np.int64)
        self._enumerate()

    def _enumerate(self) -> None:
        threads = self.function.threads
        self.lane = np.arange(self.lanes, dtype=np.int64)
        self.cta = self.lane // threads
        self.warp = self.lane % threads // WARP

    def set_special(self, grid: Index) -> None:
        """Give the special registers their values, and bits all ones to those that nothing ever writes."""
        for register in self.function.undefined:
            dtype = np.bool_ if register.bits == 1 else UNSIGNED[register.bits]
            self.registers[register.index] = np.full(self.lanes, -1).astype(dtype)
        thread = self.lane % self.function.threads
        ones = np.ones(self.lanes, np.int64)
        found = {"%laneid": thread % WARP, "%warpid": thread // WARP}
        found["%nwarpid"] = ones * (self.function.threads // WARP)
        for axis, name in enumerate("xyz"):
            found[f"%tid.{name}"] = thread if not axis else ones * 0
            found[f"%ntid.{name}"] = ones * self.function.threads if not axis else ones
            found[f"%nctaid.{name}"] = ones * grid[axis]
            found[f"%ctaid.{name}"] = np.array([cta[axis] for cta in self.ctas])[self.cta]
        for name, value in found.items():
            if name in self.function.registers:
                self.registers[self.function.registers[name].index] = value.astype(np.uint32)

    def read(self, register: Register) -> Array:
        """Return a register's bits, one unsigned integer a lane."""
        found = self.registers[register.index]
        if found is None:
            pending = any(register.index in group.results for group in (*self.product_groups, self.products))
            why = "while a wgmma without a wait still writes it" if pending else "before it is written"
            raise UndefinedRegister(f"register '{register.name}' is used {why}")
        return found

    def write(self, register: Register, raw: Array, mask: Mask) -> None:
        """Set a register's bits in the lanes of a mask; the others keep theirs, or get bits all ones."""
        if len(raw) != self.lanes:
            raw = np.full(self.lanes, raw[0])
        if mask is not None:
            old = self.registers[register.index]
            fill = np.array(-1).astype(raw.dtype)
            raw = np.where(mask, raw, fill if old is None else old)
        self.registers[register.index] = raw

    def is_fenced(self, raw: Array) -> bool:
        """Return whether bits were in some register at the last wgmma.fence."""
        return place(raw) in self.fenced

    def fence_registers(self) -> None:
        """Let wgmma read what is in registers now; it is kept, so that no other bits get its place."""
        self.fenced = {place(raw): raw for raw in self.registers if raw is not None}

    def active(self, mask: Mask) -> Indices:
        """Return the lanes of a mask."""
        return self.lane if mask is None else self.lane[mask]

    def converged(self, mask: Mask, name: str) -> None:
        """Raise DivergentBarrier unless all threads execute an instruction."""
        if mask is not None:
            raise DivergentBarrier(f"'{name}' is not executed by all threads", lane=int(np.argmin(mask)))

    def touch_global(self, kind: str, addresses: Indices, width: int, lanes: Indices) -> None:
        """Count the bytes and the sectors of one access."""
        sector = addresses >> 5
        ctas = self.numbers[self.cta[lanes]]
        warps = ctas * WARP + self.warp[lanes]
        sectors = len(np.unique((warps << 44) | sector))
        if kind == "load":
            self.counts.load_bytes += width * len(lanes)
            self.counts.load_sectors += sectors
        else:
            self.counts.store_bytes += width * len(lanes)
            self.counts.store_sectors += sectors
        self.sectors[kind].append(np.unique((ctas << 44) | sector))

    def finish_counts(self) -> Counts:
        """Return the totals once all threads have ended."""
        for kind, found in self.sectors.items():
            if found:
                total = len(np.unique(np.concatenate(found)))
                setattr(self.counts, f"cta_{kind}_sectors", total)
        return self.counts

    def run(self, steps: Sequence[Step]) -> "Machine | None":
        """Run to the end, or to where CTAs part: return those that branch, and go on from here later."""
        with np.errstate(all="ignore"):
            while self.pc < len(steps):
                step = steps[self.pc]
                try:
                    other = self._step(step, len(steps))
                except Fault as fault:
                    self._locate(fault)
                    raise
                if other is not None:
                    return other
        return None

    def _step(self, step: Step, end: int) -> "Machine | None":
        mask: Mask = None
        if step.guard is not None:
            mask = self.read(step.guard.register).astype(bool, copy=False)
            mask = ~mask if step.guard.negated else mask
            if mask.all():
                mask = None
            elif not mask.any():
                self.pc += 1
                return None
        warps = self.lanes // WARP if mask is None else int(mask.reshape(-1, WARP).any(axis=1).sum())
        self.counts.instructions[step.name] += warps
        if step.run is not None:
            step.run(self, mask)
            self.pc += 1
            return None
        target = min(step.target, end)
        if mask is None:
            self.pc = target
            return None
        return self._part(mask, target)

    def _part(self, mask: npt.NDArray[np.bool_], target: int) -> "Machine":
        taken = mask.reshape(-1, self.function.threads)
        uniform = taken.all(axis=1) == taken.any(axis=1)
        if not uniform.all():
            row = int(np.argmin(uniform))
            lane = row * self.function.threads + int(np.argmin(taken[row] == taken[row, 0]))
            raise DivergentBranch("threads of one CTA take different ways", lane=lane)
        branching = taken[:, 0]
        self.pc += 1
        other = self._select(np.flatnonzero(branching))
        other.pc = target
        self._keep(np.flatnonzero(~branching))
        return other

    def _select(self, ctas: Indices) -> "Machine":
        """Return a machine of some of the CTAs, with all their state; both count into one total."""
        found = Machine.__new__(Machine)
        found.__dict__.update(self.__dict__)
        found._keep(ctas)
        return found

    def _keep(self, ctas: Indices) -> None:
        lanes = np.flatnonzero(np.isin(self.cta, ctas))
        moved = np.full(self.lanes, -1)
        moved[lanes] = np.arange(len(lanes))
        stride = self.shared.stride
        renumbered = np.full(len(self.ctas), -1)
        renumbered[ctas] = np.arange(len(ctas))

        def rows_of(rows: Indices, width: int) -> Indices:
            per_cta = stride // width
            return renumbered[rows // per_cta] * per_cta + rows % per_cta

        def copy_of(copy: Copy) -> Copy:
            kept = moved[copy.lanes] >= 0
            rows = rows_of(copy.rows[kept], copy.value.shape[1])
            return Copy(rows, copy.value[kept], moved[copy.lanes[kept]])

        def products_of(group: Products) -> Products:
            kept = [rows[renumbered[rows // (stride // 16)] >= 0] for rows in group.rows]
            results = {index: value[lanes] for index, value in group.results.items()}
            operands = {
                index: registers[index] if self.registers[index] is value else None
                for index, value in group.operands.items()
            }
            return Products(results, operands, [rows_of(rows, 16) for rows in kept])

        registers = [None if value is None else value[lanes] for value in self.registers]
        self.shared = self.shared.select(ctas)
        self.copies = [copy_of(each) for each in self.copies]
        self.copy_groups = deque([copy_of(each) for each in group] for group in self.copy_groups)
        self.products = products_of(self.products)
        self.product_groups = deque(products_of(each) for each in self.product_groups)
        if self.fenced:
            self.fenced = {
                place(new): new
                for new, old in zip(registers, self.registers, strict=True)
                if new is not None and old is not None and self.is_fenced(old)
            }
        self.registers = registers
        self.ctas = [self.ctas[cta] for cta in ctas]
        self.numbers = self.numbers[ctas]
        self.lanes = len(lanes)
        self._enumerate()

    def _locate(self, fault: Fault) -> None:
        fault.site = self.function.instructions[self.pc].site
        if fault.lane is not None:
            fault.cta = self.ctas[fault.lane // self.function.threads]
            fault.thread = fault.lane % self.function.threads
