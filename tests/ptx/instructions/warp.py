"""Instructions in which the lanes of a warp exchange values."""

from collections.abc import Callable

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.machine import WARP, Machine, Mask
from tests.ptx.types import TYPES, Array

U32, PRED = TYPES["u32"], TYPES["pred"]
ALL_LANES = {-1, 0xFFFFFFFF}
LANES = np.arange(WARP, dtype=np.int64)[None]


def _whole_warp(decoding: Decoding, index: int) -> None:
    if decoding.immediate(index) not in ALL_LANES:
        raise decoding.refuse("only whole warps are executed")


def _whole_warp_when_run(decoding: Decoding, index: int) -> Callable[[Machine], None]:
    """Return what checks, of a mask that may be a register, that it names every lane."""
    members = decoding.source(index, U32)

    def check(machine: Machine) -> None:
        if not (np.asarray(members(machine)) == max(ALL_LANES)).all():
            raise decoding.refuse("only whole warps are executed")

    return check


def shuffle(decoding: Decoding) -> Run:
    """`shfl.sync`: read another lane's register; a lane out of range reads its own."""
    decoding.need("sync")
    mode = decoding.need("up", "down", "bfly", "idx")
    decoding.need("b32")
    decoding.finish(5)
    _whole_warp(decoding, 4)
    first, second = decoding.pair(0)
    sink = decoding.sink_of(first, U32)
    in_range = None if second is None else decoding.sink_of(second, PRED)
    value, by, limit = (decoding.source(index, U32) for index in (1, 2, 3))

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "shfl.sync")
        a, b, c = (
            np.broadcast_to(source(machine), (machine.lanes,)).reshape(-1, WARP)
            for source in (value, by, limit)
        )
        lane, inside = source_lane(mode, b.astype(np.int64) & 31, c.astype(np.int64))
        sink(machine, np.take_along_axis(a, lane, axis=1).reshape(-1), None)
        if in_range is not None:
            in_range(machine, inside.reshape(-1), None)

    return run


def source_lane(mode: str, by: Array, limit: Array) -> tuple[Array, Array]:
    """Return which lane each reads, and whether that one is in its segment."""
    segment = limit >> 8 & 31
    low = LANES & segment
    last = low | (limit & 31 & ~segment)
    lane = {
        "up": LANES - by,
        "down": LANES + by,
        "bfly": LANES ^ by,
        "idx": low | (by & ~segment),
    }[mode]
    inside = lane >= last if mode == "up" else lane <= last
    return np.where(inside, lane, LANES), inside


def vote(decoding: Decoding) -> Run:
    """`vote.sync`: ask the lanes of a warp a question."""
    decoding.need("sync")
    mode = decoding.need("all", "any", "uni", "ballot")
    decoding.need("b32" if mode == "ballot" else "pred")
    decoding.finish(3)
    _whole_warp(decoding, 2)
    asked = decoding.source(1, PRED)
    sink = decoding.sink(0, U32 if mode == "ballot" else PRED)

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "vote.sync")
        truth = np.broadcast_to(asked(machine), (machine.lanes,)).reshape(-1, WARP)
        if mode == "ballot":
            found = (truth.astype(np.uint64) << LANES.astype(np.uint64)).sum(axis=1).astype(np.uint32)
        elif mode == "uni":
            found = truth.all(axis=1) | ~truth.any(axis=1)
        else:
            found = truth.all(axis=1) if mode == "all" else truth.any(axis=1)
        sink(machine, np.repeat(found, WARP), None)

    return run


REDUCTIONS: dict[str, Callable[..., Array]] = {
    "add": lambda value: value.sum(axis=1, dtype=value.dtype),
    "min": lambda value: value.min(axis=1),
    "max": lambda value: value.max(axis=1),
    "and": lambda value: np.bitwise_and.reduce(value, axis=1),
    "or": lambda value: np.bitwise_or.reduce(value, axis=1),
    "xor": lambda value: np.bitwise_xor.reduce(value, axis=1),
}


def reduction(decoding: Decoding) -> Run:
    """`redux.sync`: combine the integers of a warp."""
    kind = decoding.type()
    decoding.need("sync")
    combine = REDUCTIONS[decoding.need(*REDUCTIONS)]
    if kind.bits != 32 or kind.kind == "f":
        raise decoding.refuse(f"redux of {kind.name} is not executed")
    decoding.finish(3)
    require_whole_warp = _whole_warp_when_run(decoding, 2)
    source, sink = decoding.source(1, kind), decoding.sink(0, kind)

    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "redux.sync")
        require_whole_warp(machine)
        value = np.broadcast_to(source(machine), (machine.lanes,)).reshape(-1, WARP)
        sink(machine, np.repeat(combine(value), WARP), None)

    return run


DECODERS: dict[str, Decoder] = {"shfl": shuffle, "vote": vote, "redux": reduction}
