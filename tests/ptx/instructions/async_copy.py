"""`cp.async`: copies from global to shared memory that arrive when the thread waits for their group."""

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.instructions.memory import CACHE_HINT, CACHING, gather_global
from tests.ptx.machine import Copy, Indices, Machine, Mask
from tests.ptx.types import TYPES, Array


def async_copy(decoding: Decoding) -> Run:
    """`cp.async`, its commit and its waits."""
    decoding.need("async")
    if decoding.take("commit_group"):
        decoding.finish(0)
        return _commit
    if decoding.take("wait_all"):
        decoding.finish(0)
        return _wait_all
    if decoding.take("wait_group"):
        decoding.finish(1)
        return _wait(decoding.immediate(0))
    return _issue(decoding)


def _issue(decoding: Decoding) -> Run:
    decoding.need("shared", "shared::cta")
    decoding.need("global")
    decoding.skip(*CACHING)
    if decoding.take(CACHE_HINT):
        raise decoding.refuse("a cache hint of cp.async is not executed")
    decoding.finish()
    if len(decoding.operands) not in {3, 4}:
        raise decoding.refuse("3 or 4 operands are expected")
    target, origin = decoding.address(0), decoding.address(1)
    width = decoding.immediate(2)
    size = decoding.source(3, TYPES["u32"]) if len(decoding.operands) == 4 else None

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active(mask)
        sizes = np.full(len(lanes), width, np.int64)
        if size is not None:
            sizes = np.broadcast_to(size(machine), (machine.lanes,))[lanes].astype(np.int64)
        value = _fetch(machine, origin(machine)[lanes], sizes, width, lanes)
        rows = machine.shared.locate(target(machine)[lanes], width, machine.cta[lanes], lanes)
        machine.shared.begin_copy(rows, width, machine.warp[lanes], lanes)
        machine.copies.append(Copy(rows, value, lanes))

    return run


def _fetch(machine: Machine, addresses: Indices, sizes: Indices, width: int, lanes: Indices) -> Array:
    """Read the first `sizes` bytes of each lane's `width`; the rest is zero."""
    value = np.zeros((len(lanes), width), np.uint8)
    for size in np.unique(sizes):
        some = sizes == size
        if size == width:
            value[some] = gather_global(machine, addresses[some], width, lanes[some])
            continue
        # Part of an access, aligned as the whole.
        for at in range(int(size)):
            value[some, at] = gather_global(machine, addresses[some] + at, 1, lanes[some])[:, 0]
    return value


def _commit(machine: Machine, mask: Mask) -> None:
    machine.converged(mask, "cp.async.commit_group")
    machine.copy_groups.append(machine.copies)
    machine.copies = []


def _wait(left: int) -> Run:
    def run(machine: Machine, mask: Mask) -> None:
        machine.converged(mask, "cp.async.wait_group")
        while len(machine.copy_groups) > left:
            for copy in machine.copy_groups.popleft():
                warps = machine.warp[copy.lanes]
                machine.shared.end_copy(copy.rows, copy.value, warps, copy.lanes)

    return run


def _wait_all(machine: Machine, mask: Mask) -> None:
    _commit(machine, mask)
    _wait(0)(machine, mask)


DECODERS: dict[str, Decoder] = {"cp": async_copy}
