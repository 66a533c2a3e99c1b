"""The body of the peak kernels: every chain takes its own last result, so that no product can be left out."""

from typing import Any

from tvm.tirx.script.builder import ir as T

from tokc.cost.launch_work import F32
from tokc.targets.cpu.kernels.peak import CHAINS, UNROLLED, Peak
from tokc.targets.cpu.kernels.tir import Arguments, Expr, dot_u8, function, intrinsic, ramp, registers, splat

WEIGHT, ACTIVATIONS = 3, 0x01020304


def build(spec: Peak) -> Any:
    """Return the PrimFunc of a specialization."""
    return function(spec.symbol, spec.args, lambda arguments: _emit(spec, arguments))


def _emit(spec: Peak, arguments: Arguments) -> None:
    lanes, kind = spec.isa.lanes, "float32" if spec.arithmetic == F32 else "int32"
    state, chains = arguments.buffer("state", kind), registers(CHAINS, lanes, kind)
    first = T.Bind(arguments.tid * (CHAINS * lanes))
    for i in range(CHAINS):
        chains[i] = state[ramp(first + i * lanes, lanes)]
    with T.serial(0, arguments.rows):
        for _ in range(UNROLLED):
            for i in range(CHAINS):
                chains[i] = _multiplied(spec, chains[i])
    for i in range(CHAINS):
        T.buffer_store(state, chains[i], [ramp(first + i * lanes, lanes)])


def _multiplied(spec: Peak, total: Expr) -> Expr:
    """Return `total` with one instruction's products added; two instructions for pmaddubsw."""
    lanes = spec.isa.lanes
    if spec.arithmetic == F32:
        factors = splat(T.float32(0.5), lanes), splat(T.float32(1.0), lanes)
        return intrinsic(f"float32x{lanes}", "llvm.fma", total, *factors)
    activations = splat(T.int32(ACTIVATIONS), lanes)
    if spec.isa.dot != "pmaddubsw":
        return dot_u8(spec.isa, total, splat(T.uint8(WEIGHT), 4 * lanes), activations)
    weights, pairs = T.reinterpret(f"uint8x{4 * lanes}", total), f"int16x{2 * lanes}"
    signed = T.reinterpret(f"int8x{4 * lanes}", activations)
    products = intrinsic(pairs, "llvm.x86.avx2.pmadd.ub.sw", weights, signed)
    return T.reinterpret(f"int32x{lanes}", T.reinterpret(pairs, total) + products)
