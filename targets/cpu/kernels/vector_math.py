"""Arithmetic on vectors of 16 f32, the same bits wherever an element sits.

Every vector has 16 lanes, whatever the machine's are: LLVM splits it. So sums have one order on all
instruction sets. Products that are added go through `fma`, and products that are not to be fused go through
`multiply`, because LLVM contracts `a * b + c` where it sees both, which may differ between variants of a
tile.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.tir import Buffer, Expr, Registers, intrinsic, ramp, registers, splat

LANES = 16
F32 = f"float32x{LANES}"
I32 = f"int32x{LANES}"

EXP_LOW = -87.0
EXP_HIGH = 88.0
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
# Cephes expf: exp(r) = 1 + r + r * r * p(r) on |r| <= ln(2) / 2, relative error 2e-7 at most.
EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# Cephes tanhf: tanh(x) = x + x ** 3 * p(x ** 2) below TANH_NEAR.
TANH_NEAR = 0.625
TANH_COEFFICIENTS = (
    -5.70498872745e-3,
    2.06390887954e-2,
    -5.37397155531e-2,
    1.33314422036e-1,
    -3.33332819422e-1,
)
# The rational approximation of erf in f32 that Eigen uses on [-4, 4].
ERF_TOP = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_BOTTOM = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def keep(value: Expr) -> Expr:
    """Evaluate once, here, and return what reads it.

    Not T.Bind: TVM's simplifier replaces a bound name by its value, so that a chain of names that are read
    twice each grows exponentially. LLVM turns the local buffer back into a register.
    """
    dtype, _, count = str(value.ty).partition("x")
    lanes = int(count or 1)
    local = T.alloc_buffer((lanes,), dtype, scope="global")
    index = ramp(0, lanes) if lanes > 1 else 0
    T.buffer_store(local, value, [index])
    return local[index]


def vectors(count: int) -> Registers:
    """Return `count` vectors of f32 that change."""
    return registers(count, LANES, "float32")


def load(buffer: Buffer, start: Expr, lanes: int = LANES) -> Expr:
    """Return `lanes` consecutive elements."""
    return keep(buffer[ramp(start, lanes)])


def store(buffer: Buffer, start: Expr, value: Expr, lanes: int = LANES) -> None:
    """Write consecutive elements."""
    T.buffer_store(buffer, value, [ramp(start, lanes)])


def constant(value: float) -> Expr:
    """Return a vector of one f32."""
    return splat(T.float32(value), LANES)


def widen(vector: Expr) -> Expr:
    """Return 16 halves or bytes as f32; exact."""
    return keep(T.Cast(F32, vector))


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """Return a * b + c, rounded once."""
    return keep(intrinsic(F32, "llvm.fma", a, b, c))


def multiply(a: Expr, b: Expr) -> Expr:
    """Return a * b, rounded before whatever follows; never -0."""
    return fma(a, b, constant(0.0))


def fold(vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Reduce 16 lanes to a scalar, halves first: lane i with lane i + 8, then i + 4, and so on."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        low = T.Shuffle([vector], list(range(lanes)))
        high = T.Shuffle([vector], list(range(lanes, 2 * lanes)))
        vector = keep(combine(low, high))
    return vector


def total(vector: Expr) -> Expr:
    """Return the sum of the lanes."""
    return fold(vector, lambda a, b: a + b)


def whole_total(vector: Expr) -> Expr:
    """Return the exact sum of i32 lanes."""
    return keep(intrinsic("int32", "llvm.vector.reduce.add", vector))


def largest(vector: Expr) -> Expr:
    """Return the largest lane."""
    return fold(vector, T.max)


def least(vector: Expr) -> Expr:
    """Return the smallest lane."""
    return fold(vector, T.min)


def magnitude(vector: Expr) -> Expr:
    """Return |x|."""
    return keep(intrinsic(F32, "llvm.fabs", vector))


def exponential(x: Expr) -> Expr:
    """Return exp(x), 0 below `EXP_LOW`; exp(0) is exactly 1."""
    x = keep(x)
    clamped = keep(T.max(T.min(x, constant(EXP_HIGH)), constant(EXP_LOW)))
    power = nearest(multiply(clamped, constant(1 / math.log(2))))
    rest = fma(power, constant(-LN2_HIGH), clamped)
    rest = fma(power, constant(-LN2_LOW), rest)
    polynomial = constant(EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        polynomial = fma(polynomial, rest, constant(coefficient))
    mantissa = fma(polynomial, multiply(rest, rest), rest)
    bits = (T.Cast(I32, power) + splat(127, LANES)) << splat(23, LANES)
    value = multiply(keep(mantissa + constant(1.0)), keep(T.reinterpret(F32, bits)))
    return keep(T.Select(x >= constant(EXP_LOW), value, constant(0.0)))


def silu(x: Expr) -> Expr:
    """Return x / (1 + exp(-x))."""
    return keep(x / (constant(1.0) + exponential(constant(0.0) - x)))


def gelu_tanh(x: Expr) -> Expr:
    """Return x / (1 + exp(-2 * u)) = x * (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 * x ** 3)."""
    square = multiply(x, x)
    inner = multiply(x, fma(square, constant(0.044715), constant(1.0)))
    return keep(x / (constant(1.0) + exponential(multiply(inner, constant(-2 * math.sqrt(2 / math.pi))))))


def sigmoid(x: Expr) -> Expr:
    """Return 1 / (1 + exp(-x))."""
    return keep(constant(1.0) / (constant(1.0) + exponential(constant(0.0) - x)))


def tanh(x: Expr) -> Expr:
    """Return the hyperbolic tangent: 1 - 2 / (exp(2 |x|) + 1) with x's sign, a polynomial near 0."""
    size = magnitude(x)
    grown = keep(exponential(keep(size + size)) + constant(1.0))
    far = keep(constant(1.0) - keep(constant(2.0) / grown))
    far = keep(T.Select(x < constant(0.0), constant(0.0) - far, far))
    square = multiply(x, x)
    polynomial = horner(TANH_COEFFICIENTS, square)
    near = fma(multiply(polynomial, square), x, x)
    return keep(T.Select(size < constant(TANH_NEAR), near, far))


def erf(x: Expr) -> Expr:
    """Return the error function as x * p(x ** 2) / q(x ** 2), constant beyond 4."""
    clamped = keep(T.max(T.min(x, constant(4.0)), constant(-4.0)))
    square = multiply(clamped, clamped)
    top = multiply(clamped, horner(ERF_TOP, square))
    return keep(top / horner(ERF_BOTTOM, square))


def gelu(x: Expr) -> Expr:
    """Return x * (1 + erf(x / sqrt(2))) / 2."""
    share = erf(multiply(x, constant(math.sqrt(0.5))))
    return multiply(multiply(x, constant(0.5)), keep(share + constant(1.0)))


def horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """Return a polynomial's value, the coefficient of the highest power first."""
    value = constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, constant(coefficient))
    return value


ACTIVATIONS: Mapping[str, Callable[[Expr], Expr]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def nearest(x: Expr) -> Expr:
    """Round to the nearest whole number, halves to even."""
    return keep(intrinsic(F32, "llvm.nearbyint", x))
