"""A lowered program: kernel launches over statically planned buffers.

A Plan is the last form that can be read: `str(plan)` lists every launch with its operands, and its JSON is
what the runtime executes. Sizes are symbolic only in `tokens` (of a step), `rows` (logit rows), `seqs`,
`blocks` (of a block table) and `pages` (of the cache).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from tokc.cost.launch_work import LaunchWork

Space = Literal["weights", "arena", "input", "output", "kv", "scratch"]
Rows = Literal["tokens", "rows"]

SCHEMA_VERSION = 1
NO_WORK = LaunchWork()
ITEM_BYTES = {"f32": 4, "f16": 2, "i32": 4, "i8": 1, "u8": 1}


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
    """One kernel over all threads."""

    kernel: str
    operands: tuple[Operand, ...]
    rows: Rows
    op: str
    layer: int | None
    work: LaunchWork = NO_WORK


@dataclass(frozen=True)
class Plan:
    """A whole step of the model, in running order; `probes` are no part of it, a bench launches them."""

    limits: Mapping[str, int]
    kernels: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    launches: tuple[Launch, ...]
    arena_bytes: int = 0
    probes: tuple[Launch, ...] = ()

    def with_arena(self, offsets: Mapping[str, int], arena_bytes: int) -> "Plan":
        """Return the plan with each arena buffer placed."""
        buffers = tuple(replace(b, offset=offsets[b.name]) if b.space == "arena" else b for b in self.buffers)
        return replace(self, buffers=buffers, arena_bytes=arena_bytes)

    def to_json(self) -> dict[str, object]:
        """Return what the runtime reads: kernels by index, operands as [buffer index, byte offset]."""
        kernel_index = {symbol: index for index, symbol in enumerate(self.kernels)}
        buffer_index = {buffer.name: index for index, buffer in enumerate(self.buffers)}
        launches = [
            {
                "kernel": kernel_index[launch.kernel],
                "rows": launch.rows,
                "op": launch.op,
                "layer": launch.layer,
                "operands": [[buffer_index[operand.buffer], operand.offset] for operand in launch.operands],
                "work": launch.work.to_json(),
            }
            for launch in self.launches
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "limits": dict(self.limits),
            "arena_bytes": self.arena_bytes,
            "kernels": list(self.kernels),
            "buffers": [asdict(buffer) for buffer in self.buffers],
            "launches": launches,
            "probes": [
                {"kernel": kernel_index[probe.kernel], "work": probe.work.to_json()} for probe in self.probes
            ],
        }

    def __str__(self) -> str:
        """Return the plan as text, one buffer or launch a line."""
        lines = [f"plan limits={dict(self.limits)} arena={self.arena_bytes} bytes"]
        for buffer in self.buffers:
            place = "" if buffer.offset is None else f" @{buffer.offset}"
            shape = ", ".join(map(str, buffer.shape))
            lines.append(f"  {buffer.space:7} {buffer.name}: {buffer.dtype}[{shape}]{place}")
        for index, launch in enumerate(self.launches):
            operands = ", ".join(f"{o.buffer}+{o.offset}" if o.offset else o.buffer for o in launch.operands)
            layer = "" if launch.layer is None else f" layer={launch.layer}"
            lines.append(f"  {index:4} {launch.kernel}[{launch.rows}]({operands})  # {launch.op}{layer}")
        return "\n".join(lines) + "\n"
