"""Loads, stores and atomic operations."""

from collections.abc import Callable

import numpy as np

from tests.ptx.decoding import Decoder, Decoding, Run, Source
from tests.ptx.machine import Indices, Machine, Mask
from tests.ptx.syntax import Address, Symbol
from tests.ptx.types import UNSIGNED, Array, Type

# How long a line should stay in which cache, and who else sees an access when: neither changes a value here.
CACHING = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_first", "L1::evict_last",
           "L1::evict_normal", "L1::evict_unchanged", "L1::no_allocate", "L2::evict_first", "L2::evict_last",
           "L2::evict_normal", "L2::64B", "L2::128B", "L2::256B")  # fmt: skip
ORDERING = ("volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys")
CACHE_HINT = "L2::cache_hint"


def bytes_of(raw: Array, lanes: int) -> Array:
    """Return [lanes, width] bytes of unsigned integers, one a lane or one for all."""
    whole = np.ascontiguousarray(np.broadcast_to(raw, (lanes,)))
    return whole.view(np.uint8).reshape(lanes, -1)


def load(decoding: Decoding) -> Run:
    """`ld`: global, shared or param."""
    kind = decoding.type()
    decoding.skip(*CACHING, *ORDERING)
    count = {None: 1, "v2": 2, "v4": 4, "v8": 8}[decoding.take("v2", "v4", "v8")]
    hint = decoding.take(CACHE_HINT) is not None
    space = decoding.need("global", "shared", "shared::cta", "param")
    decoding.finish(3 if hint else 2)
    parts = decoding.vector(0)
    if len(parts) != count:
        raise decoding.refuse(f"{count} registers are expected")
    sinks = [decoding.sink_of(part, kind) for part in parts]
    if space == "param":
        return _load_parameter(decoding, kind)
    address = decoding.address(1)
    width = kind.bits // 8 * count
    gather = gather_global if space == "global" else gather_shared

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active(mask)
        found = gather(machine, address(machine)[lanes], width, lanes)
        if len(lanes) != machine.lanes:
            whole = np.zeros((machine.lanes, width), np.uint8)
            whole[lanes] = found
            found = whole
        values = np.ascontiguousarray(found).view(UNSIGNED[kind.bits])
        for column, sink in enumerate(sinks):
            sink(machine, kind.decode(values[:, column]), mask)

    return run


def _load_parameter(decoding: Decoding, kind: Type) -> Run:
    address = decoding.operands[1]
    if not isinstance(address, Address) or not isinstance(address.base, Symbol):
        raise decoding.refuse("a parameter is expected")
    name, shift = address.base.name, address.offset
    sink = decoding.sink(0, kind)

    def run(machine: Machine, mask: Mask) -> None:
        start = next(each.offset for each in machine.function.parameters if each.name == name) + shift
        raw = np.frombuffer(machine.parameters[start : start + kind.bits // 8], UNSIGNED[kind.bits])
        sink(machine, kind.decode(raw), mask)

    return run


def gather_global(machine: Machine, addresses: Indices, width: int, lanes: Indices) -> Array:
    """Read and count [lanes, width] bytes of global memory."""
    found = machine.memory.read(addresses, width, lanes)
    machine.touch_global("load", addresses, width, lanes)
    return found


def gather_shared(machine: Machine, addresses: Indices, width: int, lanes: Indices) -> Array:
    """Read [lanes, width] bytes of shared memory."""
    rows = machine.shared.locate(addresses, width, machine.cta[lanes], lanes)
    return machine.shared.read(rows, width, machine.warp[lanes], lanes)


def store(decoding: Decoding) -> Run:
    """`st`: global or shared."""
    kind = decoding.type()
    decoding.skip(*CACHING, *ORDERING)
    count = {None: 1, "v2": 2, "v4": 4, "v8": 8}[decoding.take("v2", "v4", "v8")]
    hint = decoding.take(CACHE_HINT) is not None
    space = decoding.need("global", "shared", "shared::cta")
    decoding.finish(3 if hint else 2)
    address = decoding.address(0)
    parts = decoding.vector(1)
    if len(parts) != count:
        raise decoding.refuse(f"{count} registers are expected")
    sources = [decoding.source_of(part, kind) for part in parts]

    def run(machine: Machine, mask: Mask) -> None:
        lanes = machine.active(mask)
        raw = [bytes_of(kind.encode(source(machine)), machine.lanes) for source in sources]
        value = np.concatenate(raw, axis=1)[lanes]
        addresses = address(machine)[lanes]
        if space == "global":
            machine.memory.write(addresses, value, lanes, machine.numbers[machine.cta[lanes]])
            machine.touch_global("store", addresses, value.shape[1], lanes)
        else:
            rows = machine.shared.locate(addresses, value.shape[1], machine.cta[lanes], lanes)
            machine.shared.write(rows, value, machine.warp[lanes], lanes)

    return run


def exchange(_: Array, new: Array) -> Array:
    """Return what to store for `exch`."""
    return new


def compare_and_swap(old: Array, expected: Array, new: Array) -> Array:
    """Return what to store for `cas`."""
    return np.where(old == expected, new, old)


COMBINE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": exchange,
    "cas": compare_and_swap,
}


def atomic(*, returns: bool) -> Decoder:
    """Return the decoder of `atom`, or of `red`, on global memory; lanes take their turns in order."""

    def decode(decoding: Decoding) -> Run:
        kind = decoding.type()
        if kind.bits < 32 or kind.packed > 1:
            raise decoding.refuse(f"atomic operations on {kind.name} are not executed")
        decoding.skip(*CACHING, *ORDERING)
        combine = COMBINE[decoding.need(*COMBINE)]
        decoding.need("global")
        first = int(returns)
        sources = [decoding.source(index, kind) for index in range(first + 1, len(decoding.operands))]
        decoding.finish()
        address = decoding.address(first)

        def run(machine: Machine, mask: Mask) -> None:
            old = take_turns(machine, mask, address(machine), kind, combine, sources)
            if returns:
                decoding.sink(0, kind)(machine, old, mask)

        return run

    return decode


def take_turns(
    machine: Machine,
    mask: Mask,
    addresses: Indices,
    kind: Type,
    combine: Callable[..., Array],
    sources: list[Source],
) -> Array:
    """Combine one lane after another; return what each found."""
    width = kind.bits // 8
    lanes = machine.active(mask)
    values = [np.broadcast_to(source(machine), (machine.lanes,)) for source in sources]
    found = np.zeros(machine.lanes, kind.value)
    for lane in lanes:
        one = np.array([lane])
        raw = machine.memory.read(addresses[one], width, one)
        old = kind.decode(np.ascontiguousarray(raw).view(UNSIGNED[kind.bits])[:, 0])
        new = combine(old, *(value[one] for value in values)).astype(kind.value)
        machine.memory.write(addresses[one], bytes_of(kind.encode(new), 1), one, None)
        found[lane] = old[0]
    for direction in ("load", "store"):
        machine.touch_global(direction, addresses[lanes], width, lanes)
    return found


DECODERS: dict[str, Decoder] = {
    "ld": load,
    "st": store,
    "atom": atomic(returns=True),
    "red": atomic(returns=False),
}
