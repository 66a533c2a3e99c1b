"""Words for building TIR functions: what every kernel file says in the same way.

Kernels are built with TVM's IR builder, so that a tile of so many rows is a Python loop over registers.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.isa import Isa

ANY_SIZE = 1 << 30
Expr = Any
Buffer = Any


class Arguments:
    """The parameters of a kernel while its body is built."""

    def __init__(self, names: Sequence[str]) -> None:
        """Declare one pointer a name, then rows, tid and nt."""
        self._pointers = {name: T.arg(name, T.handle("uint8")) for name in names}
        self.rows = T.arg("rows", T.int32())
        self.tid = T.arg("tid", T.int32())
        self.threads = T.arg("nt", T.int32())

    def buffer(self, name: str, dtype: str) -> Buffer:
        """Return a flat view of a pointer."""
        return T.decl_buffer((ANY_SIZE,), dtype, data=self._pointers[name])

    def share(self, count: Expr) -> Any:
        """Return a loop over this thread's share of `count` items."""
        low = T.Bind(count * self.tid // self.threads)
        return T.serial(low, count * (self.tid + 1) // self.threads)


def function(symbol: str, args: Sequence[str], body: Callable[[Arguments], None]) -> Any:
    """Return the PrimFunc `symbol(args..., rows, tid, nt)` with the given body."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"calling_conv": 1, "global_symbol": symbol, "tirx.noalias": True})
        body(Arguments(args))
    return builder.get()


def ramp(start: Expr, lanes: int) -> Expr:
    """Return the indices start, start + 1, ..."""
    return T.Ramp(start, 1, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """Return a vector of one value."""
    return T.Broadcast(value, lanes)


def zeros(lanes: int, dtype: str = "float32") -> Expr:
    """Return a vector of zeros."""
    return T.Broadcast(T.Cast(dtype, 0) if dtype != "float32" else T.float32(0), lanes)


class Registers:
    """An array of vectors that live in registers, indexed by Python integers only.

    A buffer each, because TVM moves local buffers of 1 KiB and more to a workspace that needs its runtime.
    """

    def __init__(self, count: int, lanes: int, dtype: str) -> None:
        """Make `count` vectors."""
        self._buffers = [T.alloc_buffer((lanes,), dtype, scope="global") for _ in range(count)]
        self._lanes = lanes

    def __getitem__(self, index: int) -> Expr:
        """Read a vector."""
        return self._buffers[index][ramp(0, self._lanes)]

    def __setitem__(self, index: int, value: Expr) -> None:
        """Write a vector."""
        T.buffer_store(self._buffers[index], value, [ramp(0, self._lanes)])


def registers(count: int, lanes: int, dtype: str) -> Registers:
    """Return `count` vectors that live in registers."""
    return Registers(count, lanes, dtype)


def stack(size_bytes: int, dtype: str) -> Buffer:
    """Return room on the thread's stack that begins at a multiple of 64."""
    room = T.decl_buffer((ANY_SIZE,), "uint8", data=T.Bind(T.tvm_stack_alloca("shape", size_bytes // 8 + 8)))
    aligned = T.call_llvm_pure_intrin("handle", "llvm.ptrmask", T.address_of(room[63]), T.int64(-64))
    return T.decl_buffer((ANY_SIZE,), dtype, data=T.Bind(aligned))


def intrinsic(dtype: str, name: str, *operands: Expr) -> Expr:
    """Call an LLVM intrinsic without side effects."""
    return T.call_llvm_pure_intrin(dtype, name, *operands)


def prefetch(place: Expr, *, once: bool = False) -> None:
    """Ask for the cache line of a buffer's element, for a read; never faults.

    Into L2 (prefetcht1), or for what is read `once` past the outer caches (prefetchnta).
    """
    locality = T.int32(0 if once else 2)
    arguments = T.address_of(place), T.int32(0), locality, T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", *arguments))


def dot_u8(isa: Isa, total: Expr, weights: Expr, activations: Expr) -> Expr:
    """Add to each i32 lane of `total` four products of unsigned `weights` and signed `activations`.

    `weights` is u8[4 * lanes], `activations` i32[lanes], each lane four signed bytes. Not for pmaddubsw,
    whose sums are 16 bits wide and have rules of their own.
    """
    lanes = isa.lanes
    integers, unsigned, signed = f"int32x{lanes}", f"uint8x{4 * lanes}", f"int8x{4 * lanes}"
    match isa.dot:
        case "vpdpbusd":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
            return intrinsic(integers, name, total, weights, T.reinterpret(unsigned, activations))
        case "usdot":
            name = "llvm.aarch64.neon.usdot"
            return intrinsic(integers, name, total, weights, T.reinterpret(signed, activations))
        case "sdot":
            name = "llvm.aarch64.neon.sdot"
            return intrinsic(
                integers, name, total, T.reinterpret(signed, weights), T.reinterpret(signed, activations)
            )
    raise AssertionError(f"{isa.dot} has no plain dot product")
