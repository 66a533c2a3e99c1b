"""Barriers and fences."""

from tests.ptx.decoding import Decoder, Decoding, Run
from tests.ptx.machine import Machine, Mask
from tests.ptx.syntax import Immediate


def barrier(decoding: Decoding) -> Run:
    """`bar.sync` and `barrier.sync` of the whole CTA; `bar.warp.sync` changes nothing in lock-step."""
    if decoding.take("warp"):
        decoding.need("sync")
        decoding.finish(1)
        return _nothing
    decoding.skip("cta", "aligned")
    decoding.need("sync")
    decoding.finish()
    if any(not isinstance(operand, Immediate) for operand in decoding.operands):
        raise decoding.refuse("a barrier of registers is not executed")
    count = decoding.immediate(1) if len(decoding.operands) > 1 else None
    name = decoding.instruction.site.text

    def run(machine: Machine, mask: Mask) -> None:
        if count not in {None, machine.function.threads}:
            raise decoding.refuse("a barrier of some of the threads is not executed")
        machine.converged(mask, name)
        machine.shared.barrier()

    return run


def fence(decoding: Decoding) -> Run:
    """`fence`: that of the asynchronous proxy is checked, others order what is in order already."""
    if decoding.take("proxy"):
        decoding.need("async", "async::generic", "async.shared::cta")
        decoding.skip("shared::cta", "global")
        decoding.finish(0)
        return _fence_proxy
    decoding.skip("sc", "acq_rel", "cta", "gpu", "sys")
    decoding.finish(0)
    return _nothing


def memory_barrier(decoding: Decoding) -> Run:
    """`membar`."""
    decoding.need("cta", "gl", "sys")
    decoding.finish(0)
    return _nothing


def _nothing(_: Machine, __: Mask) -> None:
    pass


def _fence_proxy(machine: Machine, mask: Mask) -> None:
    machine.converged(mask, "fence.proxy.async")
    machine.shared.fence()


DECODERS: dict[str, Decoder] = {"bar": barrier, "barrier": barrier, "fence": fence, "membar": memory_barrier}
