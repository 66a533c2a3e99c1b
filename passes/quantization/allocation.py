"""Chooses how many bits each weight gets, so that the layers' outputs err least within a size.

Every weight is rounded to nearest at each number of bits; what the layer's output then errs on the text,
relative to the output itself, is what these bits cost. Going up from the fewest bits, the weight comes next
whose error falls most for the bits added, along the lower convex hull of its choices: the least sum of errors
for the size reached (Everett 1963, generalized Lagrange multipliers).
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from tokc.errors import PassFailed
from tokc.ir.program import Program
from tokc.passes.quantization.calibrated import Job
from tokc.passes.quantization.grid import WIDE, WIDTHS, Grid
from tokc.quality.calibration import calibration, layers

Key = TypeVar("Key")


@dataclass(frozen=True)
class Choice:
    """What a weight takes in bits, scales counted, and how much its layer errs, at one number of bits."""

    bits: int
    size: int
    error: float


def allocate(choices: Mapping[Key, Sequence[Choice]], budget: int) -> dict[Key, int]:
    """Return the bits of each weight, of `budget` bits in all at most.

    Raises: ValueError if even the smallest choices take more.
    """
    hulls = {key: _hull(some) for key, some in choices.items()}
    size = sum(hull[0].size for hull in hulls.values())
    if size > budget:
        raise ValueError("the smallest choices take more than the budget")
    at = dict.fromkeys(hulls, 0)
    queue = [
        (_slope(hull, 0), order, key) for order, (key, hull) in enumerate(hulls.items()) if len(hull) > 1
    ]
    heapify(queue)
    while queue:
        _, order, key = heappop(queue)
        hull, here = hulls[key], at[key]
        added = hull[here + 1].size - hull[here].size
        if size + added > budget:
            continue  # it stays where it is; a smaller one may still fit
        size += added
        at[key] = here + 1
        if here + 2 < len(hull):
            heappush(queue, (_slope(hull, here + 1), order, key))
    return {key: hull[at[key]].bits for key, hull in hulls.items()}


def _slope(hull: Sequence[Choice], at: int) -> float:
    """Return what the error rises by a bit added: the most negative is the best bargain."""
    return (hull[at + 1].error - hull[at].error) / (hull[at + 1].size - hull[at].size)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices on the lower convex hull of error over size, from the smallest on, error falling."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda one: one.size):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and _slope([hull[-1], choice], 0) <= _slope(hull[-2:], 0):
            hull.pop()
        hull.append(choice)
    return hull


def bits_by_weight(
    program: Program,
    jobs: Mapping[ir.Value, Job],
    readers: Mapping[ir.Value, Collection[ir.Node]],
    bits_a_weight: float,
) -> dict[ir.Value, int]:
    """Return the bits of each weight of `jobs`, `bits_a_weight` on average at most, scales counted.

    The grids of `jobs` say how groups are made. Raises: PassFailed if the budget is too small, or for what
    `layers` refuses.
    """
    choices: dict[ir.Value, list[Choice]] = {}
    linears = [node for value in jobs for node in readers[value]]
    weights = 0
    for layer in layers(program, linears, lambda value: jobs[value].read(), calibration()):
        statistics = layer.collect()
        for node in layer.linears:
            read, value = node.inputs[0], node.inputs[1]
            assert read is not None, "a Linear has an input"
            assert value is not None, "a Linear has a weight"
            if value in choices:
                continue
            w, seen = layer.weight(node), statistics[read]
            power = float(seen.error(w).sum()) or 1.0
            weights += w.size
            choices[value] = [
                Choice(
                    grid.bits,
                    _size(w.shape, grid),
                    float(seen.error(grid.dequantize(grid.quantize(w)) - w).sum()) / power,
                )
                for grid in _grids(jobs[value].grid)
            ]
    try:
        return allocate(choices, int(Fraction(bits_a_weight).limit_denominator(10_000) * weights))
    except ValueError as error:
        least = sum(some[0].size for some in choices.values()) / weights
        raise PassFailed(
            f"a budget of {bits_a_weight:g} bits a weight is less than the {least:.3g} of {WIDTHS[0]}-bit "
            "weights and their scales"
        ) from error


def described(bits: Collection[int]) -> str:
    """Return how many weights got how many bits, empty if none were chosen."""
    counts = Counter(bits)
    return ", ".join(f"{counts[one]} of {one} bits" for one in sorted(counts))


def _grids(like: Grid) -> list[Grid]:
    return [Grid(bits, like.group, like.symmetric or bits == WIDE, like.scale_bits) for bits in WIDTHS]


def _size(shape: tuple[int, ...], grid: Grid) -> int:
    scales = grid.scale_bits * (1 if grid.symmetric else 2) * shape[0] * grid.groups(shape[1])
    return int(np.prod(shape)) * grid.bits + scales
