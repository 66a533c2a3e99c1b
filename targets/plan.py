"""A lowered program: kernel launches over statically planned buffers.

A Plan is the last form that can be read: `str(plan)` lists every launch with its operands, and its JSON is
what the runtime executes. Sizes are symbolic only in `tokens` (of a step), `rows` (logit rows), `drafts`
(heads of a draft for each logit row), `seqs`, `blocks` (of a block table) and `pages` (of the cache).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from tokc.artifact.writer import compact_json
from tokc.cost.launch_work import LaunchWork

Space = Literal["weights", "arena", "input", "output", "kv", "scratch"]
Rows = Literal["tokens", "rows", "drafts"]
# Which steps a launch belongs to: a target may have other kernels for steps of few tokens than for wide ones.
Steps = Literal["all", "narrow", "wide"]

SCHEMA_VERSION = 1
NO_WORK = LaunchWork()
ITEM_BYTES = {"f32": 4, "f16": 2, "i32": 4, "i8": 1, "u8": 1}


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: `times * ceil(symbol / per)` programs, no more than `most`.

    `symbol` None stands for 1, `most` None for no bound.
    """

    symbol: str | None = None
    per: int = 1
    times: int = 1
    most: int | None = None

    def to_json(self) -> list[object]:
        """Return what the runtime reads."""
        return [self.symbol, self.per, self.times, *([] if self.most is None else [self.most])]

    def __str__(self) -> str:
        """Return `9`, `tokens`, `tokens/16`, `9*tokens/16` or `min(9*tokens, 64)`."""
        if self.symbol is None:
            return str(self.times)
        share = self.symbol if self.per == 1 else f"{self.symbol}/{self.per}"
        product = share if self.times == 1 else f"{self.times}*{share}"
        return product if self.most is None else f"min({product}, {self.most})"


Grid = tuple[Axis, ...]


@dataclass(frozen=True)
class Buffer:
    """Memory that launches read and write; `offset` in bytes within the arena, None in other spaces.

    `scratch` is per thread: the runtime makes one for each.
    """

    name: str
    space: Space
    dtype: str
    shape: tuple[int | str, ...]
    offset: int | None = None

    def bytes(self, limits: Mapping[str, int]) -> int:
        """Return the size with every symbol at its limit."""
        return ITEM_BYTES[self.dtype] * math.prod(limits[d] if isinstance(d, str) else d for d in self.shape)


@dataclass(frozen=True)
class Operand:
    """A pointer into a buffer; `offset` in bytes."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True)
class Launch:
    """One kernel: over all threads of a CPU, or over the programs of a `grid`.

    A `collective` is no kernel but a meeting of ranks, `all_gather` or `exchange` of
    `tokc.runtime.drivers.ranks`, from its first operand to its second; its grid is the bytes that one rank
    has for another.
    """

    kernel: str
    operands: tuple[Operand, ...]
    rows: Rows
    op: str
    layer: int | None
    work: LaunchWork = NO_WORK
    grid: Grid = ()
    steps: Steps = "all"
    collective: bool = False

    def to_json(self, kernels: Mapping[str, int], buffers: Mapping[str, int]) -> dict[str, object]:
        """Return what the runtime reads: the kernel by index, operands as [buffer index, byte offset]."""
        found: dict[str, object] = {
            **({"collective": self.kernel} if self.collective else {"kernel": kernels[self.kernel]}),
            "rows": self.rows,
            "op": self.op,
            "layer": self.layer,
            "operands": [[buffers[operand.buffer], operand.offset] for operand in self.operands],
            "work": self.work.to_json(),
        }
        if self.grid:
            found |= {"grid": [axis.to_json() for axis in self.grid], "steps": self.steps}
        return found

    def __str__(self) -> str:
        """Return the launch as a line of the plan's text."""
        operands = ", ".join(f"{o.buffer}+{o.offset}" if o.offset else o.buffer for o in self.operands)
        layer = "" if self.layer is None else f" layer={self.layer}"
        grid = f" grid={' x '.join(map(str, self.grid))}" if self.grid else ""
        steps = "" if self.steps == "all" else f" steps={self.steps}"
        return f"{self.kernel}[{self.rows}]({operands})  # {self.op}{layer}{grid}{steps}"


@dataclass(frozen=True)
class Plan:
    """A whole step of the model, in running order; `probes` are no part of it, a bench launches them.

    Where `ranks` devices run a step together, it is what each of them runs.
    """

    limits: Mapping[str, int]
    kernels: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
    arena_bytes: int = 0
    probes: tuple[Launch, ...] = ()
    ranks: int = 1

    def with_arena(self, offsets: Mapping[str, int], arena_bytes: int) -> "Plan":
        """Return the plan with each arena buffer placed."""
        buffers = tuple(replace(b, offset=offsets[b.name]) if b.space == "arena" else b for b in self.buffers)
        return replace(self, buffers=buffers, arena_bytes=arena_bytes)

    def files(self) -> dict[str, bytes]:
        """Return the files of an artifact that hold the plan, for the runtime and for a reader."""
        return {"plan.json": compact_json(self.to_json()), "plan.txt": str(self).encode()}

    def to_json(self) -> dict[str, object]:
        """Return what the runtime reads."""
        kernel_index = {symbol: index for index, symbol in enumerate(self.kernels)}
        buffer_index = {buffer.name: index for index, buffer in enumerate(self.buffers)}
        return {
            "schema_version": SCHEMA_VERSION,
            **({"ranks": self.ranks} if self.ranks > 1 else {}),
            "limits": dict(self.limits),
            "arena_bytes": self.arena_bytes,
            "kernels": list(self.kernels),
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "launches": [launch.to_json(kernel_index, buffer_index) for launch in self.launches],
            "probes": [
                {"kernel": kernel_index[probe.kernel], "work": probe.work.to_json()} for probe in self.probes
            ],
        }

    def __str__(self) -> str:
        """Return the plan as text, one buffer or launch a line."""
        ranks = f" of each of {self.ranks} ranks" if self.ranks > 1 else ""
        lines = [f"plan{ranks} limits={dict(self.limits)} arena={self.arena_bytes} bytes"]
        for buffer in self.buffers:
            place = "" if buffer.offset is None else f" @{buffer.offset}"
            shape = ", ".join(map(str, buffer.shape))
            lines.append(f"  {buffer.space:7} {buffer.name}: {buffer.dtype}[{shape}]{place}")
        lines += [f"  {index:4} {launch}" for index, launch in enumerate(self.launches)]
        return "\n".join(lines) + "\n"
