"""Orthogonal matrices whose entries are about alike in size: they spread what is large over every channel.

A Hadamard matrix has entries of 1 and -1 only, so that no rotation spreads better. Kronecker products of them
are Hadamard too: orders that are a power of two come from Sylvester's doubling, those with an odd part from
Paley's constructions (R. E. A. C. Paley 1933) over a prime q: order q + 1 for q = 3 (mod 4), order 2 (q + 1)
for q = 1 (mod 4). An odd part that neither reaches gets the cosine transform, orthogonal at any order, with
entries of at most sqrt(2 / order). Random signs before it keep two rotations from undoing one another.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

DOUBLING = np.array([[1.0, 1.0], [1.0, -1.0]])
MIXING = np.array([[1.0, -1.0], [-1.0, -1.0]])


@dataclass(frozen=True)
class Rotation:
    """A rotation of vectors of `size`: random signs by `seed`, then a product of Hadamard matrices.

    Applied factor by factor and with additions in a fixed order, so that any machine, thread and split of the
    vectors gives the same bits.
    """

    size: int
    seed: int = 0

    def turn(self, x: F64) -> F64:
        """Return the rotated columns of `x`, f64 [size, n]: ``R.T @ x``."""
        assert x.shape[0] == self.size, f"vectors have {x.shape[0]} elements, not {self.size}"
        turned = np.ascontiguousarray(x * self._signs[:, None])
        outer, inner = 1, self.size
        for factor in self._factors:
            order = len(factor)
            inner //= order
            turned = _along(turned.reshape(outer, order, -1), factor)
            outer *= order
        return turned.reshape(x.shape)

    def matrix(self) -> F64:
        """Return R, f64 [size, size]; a row vector x goes to ``x @ R``."""
        return self.turn(np.eye(self.size)).T

    @cached_property
    def _signs(self) -> F64:
        bits = np.random.PCG64(self.seed).random_raw(self.size) >> np.uint64(63)
        return (1.0 - 2.0 * bits.astype(np.float64)) / self._length

    @cached_property
    def _factors(self) -> tuple[F64, ...]:
        return tuple(factor(order) for order in orders(self.size))

    @property
    def _length(self) -> float:
        """Return the length of the product's columns, which the signs take out."""
        return math.prod(math.sqrt(float((one[:, 0] ** 2).sum())) for one in self._factors)


def _along(x: F64, factor: F64) -> F64:
    """Multiply the middle axis of x [outer, order, inner] by ``factor.T``."""
    turned = np.zeros_like(x)
    for row, column in np.ndindex(factor.shape):
        entry = factor[row, column]
        if abs(entry) == 1:
            (np.add if entry > 0 else np.subtract)(turned[:, column], x[:, row], out=turned[:, column])
        else:
            turned[:, column] += entry * x[:, row]
    return turned


@lru_cache
def orders(size: int) -> tuple[int, ...]:
    """Return the orders of the factors of a rotation, which multiply to `size`, cheapest to apply."""
    twos = (size & -size).bit_length() - 1
    found = _paley_orders(size >> twos, twos)
    if found is None:
        return (*(2,) * twos, size >> twos)
    rest = size // math.prod(found)
    return (*(2,) * (rest.bit_length() - 1), *found)


def _paley_orders(odd: int, twos: int) -> tuple[int, ...] | None:
    """Return orders of Paley's whose odd parts multiply to `odd`, with at most `twos` twos in all."""
    if odd == 1:
        return ()
    best = None
    for part in (one for one in range(3, odd + 1, 2) if odd % one == 0):
        for power in range(2, twos + 1):
            order = part << power
            rest = _paley_orders(odd // part, twos - power) if _prime(order) else None
            if rest is not None and (best is None or order + sum(rest) < sum(best)):
                best = (order, *rest)
    return best


def _prime(order: int) -> int | None:
    """Return the prime that gives a Hadamard matrix of `order` by one of Paley's constructions."""
    for prime, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if (
            prime % 4 == remainder
            and prime > 2
            and all(prime % one for one in range(2, math.isqrt(prime) + 1))
        ):
            return prime
    return None


@lru_cache
def factor(order: int) -> F64:
    """Return one factor: orthogonal columns of one length, with entries 1 and -1 where the order has such."""
    if order == 2:
        return DOUBLING
    if order % 4 == 0:
        prime = _prime(order)
        assert prime is not None, f"{order} is no order of Paley's"
        conference = _conference(prime)
        if prime == order - 1:
            return np.eye(order) + conference
        return np.kron(conference, DOUBLING) + np.kron(np.eye(prime + 1), MIXING)
    angles = [[math.cos(math.pi * (2 * x + 1) * k / (2 * order)) for k in range(order)] for x in range(order)]
    cosines = np.array(angles)
    cosines[:, 0] *= math.sqrt(0.5)
    return cosines


def _conference(prime: int) -> F64:
    """Return the conference matrix [prime + 1, prime + 1] of quadratic residues, zero on its diagonal."""
    squares = {x * x % prime for x in range(1, prime)}
    character = np.array([0.0, *(1.0 if x in squares else -1.0 for x in range(1, prime))])
    inside = character[np.subtract.outer(np.arange(prime), np.arange(prime)) % prime]
    matrix = np.zeros((prime + 1, prime + 1))
    matrix[0, 1:] = 1
    matrix[1:, 0] = 1 if prime % 4 == 1 else -1
    matrix[1:, 1:] = inside
    return matrix
