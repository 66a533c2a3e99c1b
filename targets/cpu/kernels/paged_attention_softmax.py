"""The softmax of PagedAttention over one block, in powers of two.

A maximum is a whole number, so 2 ** (m - m') is exact and is made of its bits.
"""

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.tir import Expr, splat
from tokc.targets.cpu.kernels.vector_math import F32, I32, constant, fma, keep, nearest

LOWEST = -1e30
MASKED = -3e38
SMALLEST_EXPONENT = -64.0
MANTISSA_BITS = 23
# 2 ** r on |r| <= 1/2, 1 at 0; least squares with weights until the relative errors were equal: 9.2e-8, in
# f32 1.7e-7 at most.
COEFFICIENTS = (
    1.326472731307149e-3,
    9.671512991189957e-3,
    5.550733581185341e-2,
    2.4022242426872253e-1,
    6.931470036506653e-1,
    1.0,
)


def scaled(mantissa: Expr, exponent: Expr) -> Expr:
    """Return mantissa * 2 ** exponent for whole exponents <= 0, and 0 below the smallest.

    `mantissa` is in [1/2, 2]: its bits are added to.
    """
    bits = keep(T.reinterpret(I32, mantissa)) + (T.Cast(I32, exponent) << splat(MANTISSA_BITS, 16))
    value = keep(T.reinterpret(F32, keep(bits)))
    return keep(T.Select(exponent >= constant(SMALLEST_EXPONENT), value, constant(0.0)))


def power(exponent: Expr) -> Expr:
    """Return 2 ** exponent for whole exponents <= 0."""
    return scaled(constant(1.0), keep(exponent))


def fraction_power(rest: Expr) -> Expr:
    """Return 2 ** rest for |rest| <= 1/2."""
    polynomial = constant(COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        polynomial = fma(polynomial, rest, constant(coefficient))
    return polynomial


def whole_parts(scores: list[Expr]) -> tuple[list[Expr], Expr]:
    """Return the scores rounded to whole numbers, and the largest of each lane."""
    wholes = [nearest(score) for score in scores]
    peak = wholes[0]
    for whole in wholes[1:]:
        peak = keep(T.max(peak, whole))
    return wholes, peak


def weights_of(scores: list[Expr], wholes: list[Expr], peak: Expr) -> list[Expr]:
    """Return 2 ** (score - peak)."""
    return [
        scaled(fraction_power(keep(score - whole)), keep(whole - peak))
        for score, whole in zip(scores, wholes, strict=True)
    ]
