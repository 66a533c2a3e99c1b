"""How near kernels of a kind come to their roofs, and what a step takes beside its kernels' work.

The seconds of a launch are taken as

    launch_s + max(bytes / (memory * bandwidth), FLOPs / (compute * peak)) + own / (caches * bandwidth)

a roofline whose roofs are lowered to what kernels of that kind reach, plus what launching takes and what
moving the step's own activations takes. Source: Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4),
with ceilings as factors.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokc.cost.launch_work import F32, LaunchWork
from tokc.cost.profile import Roofs

ANY = "any"
ROUNDS = 20
LEAST_GAIN = 1e-9
UNKNOWN = 1.0


class Amounts(NamedTuple):
    """The work of one launch in seconds at the roofs: memory's, arithmetic's, and memory's for own bytes.

    For a collective, whose kind is its own, memory's are those of the links between devices.
    """

    memory_s: float
    compute_s: float
    own_s: float


@dataclass(frozen=True)
class Efficiency:
    """The shares of the roofs that kernels of one kind reach, and the seconds of a launch beside its work.

    `memory` is of the read bandwidth for weights and caches of sequences, `caches` the same for the step's
    own activations, which the processor's caches may hold (then it is above 1), `compute` of the peak. None
    where what was measured tells nothing of it: such work costs nothing.
    """

    kind: str
    launch_s: float
    memory: float | None
    compute: float | None
    caches: float | None

    def seconds(self, amounts: Amounts, slower: float = 1.0) -> float:
        """Return the time of one launch; memory takes `slower` times what it took when the shares were found.

        That lengthens the time at memory's own rate alone: what a kernel needs for a byte beside that, to
        decode it and to multiply, is the core's.
        """
        memory_s, compute_s, own_s = (
            0.0 if share is None else seconds / share
            for seconds, share in zip(amounts, (self.memory, self.compute, self.caches), strict=True)
        )
        more_s = (slower - 1.0) * min(amounts.memory_s, memory_s)
        return self.launch_s + max(memory_s + more_s, compute_s) + own_s


@dataclass(frozen=True)
class Efficiencies:
    """The efficiencies of a machine's kernels by kind, `ANY` for those that were not measured.

    `step_s` is what a step takes beside its launches, `engine_s` and `sequence_s` what the engine adds to a
    step and for each sequence in it: scheduling, sampling, text. `source` says where the figures are from.
    """

    kinds: tuple[Efficiency, ...]
    source: str
    step_s: float = 0.0
    engine_s: float = 0.0
    sequence_s: float = 0.0

    def of(self, kind: str) -> Efficiency:
        """Return the efficiency of a kind, of the same op at the nearest width, of any, or else the roofs."""
        op, bits = _parts(kind)
        same = [one for one in self.kinds if _parts(one.kind)[0] == op]
        if same:
            return min(same, key=lambda one: abs(_parts(one.kind)[1] - bits))
        at_the_roofs = Efficiency(ANY, 0.0, UNKNOWN, UNKNOWN, UNKNOWN)
        return next((one for one in self.kinds if one.kind == ANY), at_the_roofs)


def kind_of(op: str, work: LaunchWork) -> str:
    """Return which kernels are alike: those of an op, and of as many bits a weight where it has some."""
    if work.arithmetic == F32 or not work.row_flops:
        return op
    return f"{op} {8 * work.whole_bytes / (work.row_flops / 2):.2g} bits"


def amounts_of(work: LaunchWork, rows: int, attended: int, cached: int, roofs: Roofs) -> Amounts:
    """Return the work of one launch at the roofs; links of which no rate is known take no time."""
    if work.link_bytes:
        left = rows * work.link_bytes
        return Amounts(left / roofs.link_bytes_per_s if roofs.link_bytes_per_s else 0.0, 0.0, 0.0)
    memory = work.memory_bytes(rows, cached)
    own = work.bytes(rows, cached) - memory
    compute_s = work.flops(rows, attended) / roofs.peak(work.arithmetic)
    return Amounts(memory / roofs.read_bytes_per_s, compute_s, own / roofs.read_bytes_per_s)


def fit(kind: str, amounts: Sequence[Amounts], seconds: Sequence[float]) -> Efficiency:
    """Return the efficiency whose times are nearest to the measured `seconds`, in relative error.

    Which of memory and arithmetic bounds a sample is guessed from the last fit until that no longer changes.
    """
    work, best, least = np.asarray(amounts, np.float64), Efficiency(kind, 0.0, None, None, None), np.inf
    measured = np.asarray(seconds, np.float64)
    for guess in (1.0, 0.5, 2.0, 0.0, np.inf):
        bound = work[:, 0] * guess >= work[:, 1] if np.isfinite(guess) else np.ones(len(work), bool)
        for _ in range(ROUNDS):
            found = _fit_bound(kind, work, bound, measured)
            times = np.array([found.seconds(Amounts(*row)) for row in work])
            wrong = float(np.square(times / measured - 1).sum())
            if wrong < least:
                best, least = found, wrong
            again = work[:, 0] / (found.memory or np.inf) >= work[:, 1] / (found.compute or np.inf)
            if (again == bound).all():
                break
            bound = again
    return best


def _fit_bound(
    kind: str,
    work: npt.NDArray[np.float64],
    by_memory: npt.NDArray[np.bool_],
    seconds: npt.NDArray[np.float64],
) -> Efficiency:
    # last the launch: what it explains no better than the work of launches that are all alike is the work's
    columns = [work[:, 0] * by_memory, work[:, 1] * ~by_memory, work[:, 2], np.ones(len(work))]
    *slowness, launch_s = _non_negative(np.stack(columns, axis=1) / seconds[:, None])
    return Efficiency(kind, float(launch_s), *(float(1 / one) if one > 0 else None for one in slowness))


def _non_negative(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x >= 0 with the least |matrix @ x - 1|, by trying every set of the few columns."""
    norms = np.linalg.norm(matrix, axis=0)
    scaled, ones = matrix / np.where(norms > 0, norms, 1.0), np.ones(len(matrix))
    best, least = np.zeros(matrix.shape[1]), float(len(matrix))
    used = np.flatnonzero(norms)
    for count in range(1, len(used) + 1):
        for columns in map(list, itertools.combinations(used, count)):
            x, *_ = np.linalg.lstsq(scaled[:, columns], ones, rcond=None)
            wrong = float(np.square(scaled[:, columns] @ x - 1).sum())
            if (x >= 0).all() and wrong < least - LEAST_GAIN:
                best, least = np.zeros(matrix.shape[1]), wrong
                best[columns] = x / norms[columns]
    return best


def _parts(kind: str) -> tuple[str, float]:
    op, _, width = kind.partition(" ")
    return op, float(width.partition(" ")[0] or 0.0)
