"""Does a model fit a topology's memory, and how many pages of cache are left beside it."""

from dataclasses import dataclass

from tokc.errors import TargetRefused
from tokc.ir.program import Program
from tokc.targets.tpu.describe import describe, tpu_platform
from tokc.targets.tpu.step import Step
from tokc.targets.tpu.topologies import TOPOLOGIES, Topology

USABLE = 0.94  # of the memory, as libtpu leaves it: 15.0 of a v5e's 16 GiB, and less for its own code
TEMPORARIES = 1 << 29  # kept free on each chip for what a step needs beside weights and cache
MOST_CONTEXTS = 64  # a cache for more would never be filled by 64 sequences
GB = 1e9


@dataclass(frozen=True)
class Fit:
    """Bytes on the fullest chip; `pages` of the cache are what fits beside the weights."""

    weight_bytes: int
    page_bytes: int
    usable_bytes: int
    pages: int


def chip_bytes(step: Step) -> tuple[int, int]:
    """Return the bytes of weights and of one page of cache on one chip."""
    weights = sum(each.nbytes // (step.chips if any(each.axes) else 1) for each in step.weights)
    return weights, step.cache.page_bytes // (step.chips if any(step.cache.axes) else 1)


def fit_of(step: Step, topology: Topology) -> Fit:
    """Return how a step fits: the cache takes what is left, at most 64 whole contexts."""
    weights, page = chip_bytes(step)
    usable = int(topology.generation.hbm_bytes * USABLE)
    left = usable - weights - TEMPORARIES
    return Fit(weights, page, usable, max(0, min(left // page, MOST_CONTEXTS * step.cache.blocks) - 1))


def refuse(
    program: Program, topology: Topology, fit: Fit, step: Step, *, said: str | None = None
) -> TargetRefused:
    """Return the error that names the size of the model and the smallest topology with room for it."""
    cache = step.cache.blocks * fit.page_bytes
    needs = fit.weight_bytes + cache + TEMPORARIES
    context = step.cache.blocks * step.cache.page
    parts = (
        f"{fit.weight_bytes / GB:.2f} GB of weights, {TEMPORARIES / GB:.2f} GB for a step's temporaries, "
        f"{cache / GB:.2f} GB of cache for one context of {context} tokens"
    )
    problem = (
        f"the model does not fit '{topology.name}': each chip needs {needs / GB:.2f} GB ({parts}) "
        f"and has {fit.usable_bytes / GB:.2f} GB"
    )
    larger = (one for one in TOPOLOGIES.values() if one.hbm_bytes > topology.hbm_bytes)
    for other in sorted(larger, key=lambda one: (one.hbm_bytes, one.chips)):
        there = describe(program, tpu_platform(other.chips), context, step.buckets).step
        if fit_of(there, other).pages >= there.cache.blocks:
            hint = f"the smallest topology that fits is '{other.name}'"
            break
    else:
        hint = "no topology that is known has room"
    return TargetRefused(problem, where=said, hint=f"{hint}; else use --dtype int4, or a shorter --context")
