"""Places the arena's buffers so that those alive at the same time do not overlap.

The smallest arena is an NP-hard packing; greedy by size comes within a few per cent on decoders (Pisarchyk
and Lee 2020, arXiv:2001.03288, "Greedy by Size for Offset Calculation").
"""

from tokc.targets.plan import Buffer, Plan

ALIGNMENT = 64


def plan_memory(plan: Plan) -> Plan:
    """Return the plan with every arena buffer at its offset."""
    lifetimes = live_ranges(plan)
    sizes = {b.name: _aligned(b.bytes(plan.limits)) for b in plan.buffers if b.name in lifetimes}
    placed: list[tuple[int, int, tuple[int, int]]] = []
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda n: (-sizes[n], lifetimes[n], n)):
        offset = 0
        for start, end, alive in sorted(placed):
            if _overlap(alive, lifetimes[name]) and start < offset + sizes[name] and end > offset:
                offset = end
        offsets[name] = offset
        placed.append((offset, offset + sizes[name], lifetimes[name]))
    return plan.with_arena(offsets, max((end for _, end, _ in placed), default=0))


def live_ranges(plan: Plan) -> dict[str, tuple[int, int]]:
    """Return the first and last launch that touch each arena buffer."""
    arena = {buffer.name for buffer in plan.buffers if buffer.space == "arena"}
    ranges: dict[str, tuple[int, int]] = {}
    for index, launch in enumerate(plan.launches):
        for operand in launch.operands:
            if operand.buffer in arena:
                first, _ = ranges.get(operand.buffer, (index, index))
                ranges[operand.buffer] = (first, index)
    return ranges


def overlapping(plan: Plan) -> list[tuple[Buffer, Buffer]]:
    """Return the pairs of buffers that are alive together and share bytes; none, if the plan is right."""
    ranges = live_ranges(plan)
    arena = [b for b in plan.buffers if b.name in ranges and b.offset is not None]
    return [
        (a, b)
        for i, a in enumerate(arena)
        for b in arena[i + 1 :]
        if _overlap(ranges[a.name], ranges[b.name]) and _overlap(_extent(a, plan), _extent(b, plan))
    ]


def _extent(buffer: Buffer, plan: Plan) -> tuple[int, int]:
    offset = buffer.offset or 0
    return offset, offset + buffer.bytes(plan.limits) - 1


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
