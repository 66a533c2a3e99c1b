"""The integer half of the quantized linear kernel: a group's exact sums for a register tile.

A tile has some rows by some weight tiles; sum i * tiles + j is that of row i and weight tile j.
"""

from collections.abc import Callable, Iterable, Sequence

from tvm.tirx.script.builder import ir as T

from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.kernels.quant_linear_codes import QUADS
from tokc.targets.cpu.kernels.tir import Buffer, Expr, dot_u8, intrinsic, registers, splat, zeros

Quads = Iterable[tuple[Sequence[Expr], int]]


class Sums:
    """Registers for `count` sums; pmaddubsw adds 16-bit pairs, which take registers of their own."""

    def __init__(self, spec: QuantLinear, xq: Buffer, count: int) -> None:
        """Declare registers; `xq` holds four signed bytes an element."""
        self._spec, self._xq, self._lanes = spec, xq, spec.isa.lanes
        self._sums = registers(count, self._lanes, "int32")
        self._pairs = registers(count, 2 * self._lanes, "int16") if spec.pairwise else None

    def __getitem__(self, at: int) -> Expr:
        """Return a sum."""
        return self._sums[at]

    def compute(
        self, rows: tuple[Expr, int], group: Expr, tiles: int, correction: Callable[[int], Expr], quads: Quads
    ) -> None:
        """Leave the sums of a group of columns for rows (first, count) and the tiles' `quads`.

        `correction(i)` is what the stored zero adds to the sums of the tile's row i.
        """
        first, count = rows
        pairs = self._pairs if self._spec.bits <= 4 else None
        for at in range(count * tiles):
            if pairs is not None:
                pairs[at] = zeros(2 * self._lanes, "int16")
            else:
                self._sums[at] = correction(at // tiles)
        for quants, quad in quads:
            for i in range(count):
                place = (first + i) * (self._spec.k // 4) + group * QUADS + quad
                x = splat(self._xq[place], self._lanes)
                for j, vector in enumerate(quants):
                    self._multiply(i * tiles + j, vector, x)
        if pairs is not None:
            for at in range(count * tiles):
                self._sums[at] = correction(at // tiles) + self._widened(pairs[at])

    def _multiply(self, at: int, quants: Expr, x: Expr) -> None:
        """Add the products of four columns."""
        if self._pairs is None:
            self._sums[at] = dot_u8(self._spec.isa, self._sums[at], quants, x)
        elif self._spec.bits <= 4:
            self._pairs[at] = self._pairs[at] + self._products(quants, x)
        else:
            self._sums[at] = self._sums[at] + self._widened(self._signed_products(quants, x))

    def _products(self, unsigned: Expr, activations: Expr) -> Expr:
        """Return i16 sums of two products; |2 * 15 * 127| stays far from saturation."""
        signed = T.reinterpret(f"int8x{4 * self._lanes}", activations)
        return intrinsic(f"int16x{2 * self._lanes}", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)

    def _signed_products(self, quants: Expr, activations: Expr) -> Expr:
        """Return i16 sums of two products of signed bytes: |x| times the weight with x's sign.

        Exact for weights in [-127, 127]: 2 * 127 * 127 < 2**15.
        """
        signed = f"int8x{4 * self._lanes}"
        x = T.reinterpret(signed, activations)
        magnitude = intrinsic(signed, "llvm.x86.avx2.psign.b", x, x)
        turned = intrinsic(signed, "llvm.x86.avx2.psign.b", T.reinterpret(signed, quants), x)
        unsigned = T.reinterpret(f"uint8x{4 * self._lanes}", magnitude)
        return intrinsic(f"int16x{2 * self._lanes}", "llvm.x86.avx2.pmadd.ub.sw", unsigned, turned)

    def _widened(self, pairs: Expr) -> Expr:
        """Add neighbouring i16 into i32."""
        ones = splat(T.int16(1), 2 * self._lanes)
        return intrinsic(f"int32x{self._lanes}", "llvm.x86.avx2.pmadd.wd", pairs, ones)
