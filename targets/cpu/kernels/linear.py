"""f32 linear: y = x @ w.T + bias.

Every output is one chain of fused multiply-adds over ascending columns, whatever the tile, so its bits do
not depend on how many rows there are. The weight is packed into panels f32[n / panel, k, panel].
"""

from dataclasses import dataclass
from typing import Any

from tokc.targets.cpu.isa import Isa

L2_BYTES = 1 << 20


@dataclass(frozen=True)
class Linear:
    """y f32[rows, n] of x f32[rows, k], rows `x_stride` and `y_stride` elements apart."""

    isa: Isa
    n: int
    k: int
    bias: bool
    x_stride: int
    y_stride: int

    @property
    def symbol(self) -> str:
        """Return the C symbol."""
        return f"linear_{self.n}x{self.k}{'_bias' if self.bias else ''}_{self.x_stride}_{self.y_stride}"

    @property
    def args(self) -> tuple[str, ...]:
        """Return the pointer arguments."""
        return ("w", "x", *(("bias",) if self.bias else ()), "y")

    @property
    def vectors(self) -> int:
        """Return how many vectors of outputs a panel has."""
        return 4 if self.isa.lanes == 4 else 2

    @property
    def panel(self) -> int:
        """Return how many outputs a panel has."""
        return self.vectors * self.isa.lanes

    @property
    def tiles(self) -> int:
        """Return how many panels there are."""
        return -(-self.n // self.panel)

    @property
    def tile_bytes(self) -> int:
        """Return the size of a panel."""
        return 4 * self.k * self.panel

    def build(self) -> Any:
        """Return the PrimFunc."""
        from tokc.targets.cpu.kernels.tir import function

        return function(self.symbol, self.args, self.emit)

    def emit(self, arguments: Any) -> None:
        """Build the statements that compute this thread's share."""
        from tvm.tirx.script.builder import ir as T

        from tokc.targets.cpu.kernels.tir import Expr, ramp, registers, splat, zeros

        lanes, vectors, rows_at_once = self.isa.lanes, self.vectors, 4
        w, x, y = (arguments.buffer(name, "float32") for name in ("w", "x", "y"))
        bias = arguments.buffer("bias", "float32") if self.bias else None
        total = registers(rows_at_once * vectors, lanes, "float32")

        def tile(panel: Expr, row: Expr, count: int) -> None:
            for i in range(count * vectors):
                total[i] = zeros(lanes)
            with T.serial(0, self.k) as column:
                place = (panel * self.k + column) * self.panel
                weights = [T.Bind(w[ramp(place + v * lanes, lanes)]) for v in range(vectors)]
                for i in range(count):
                    value = T.Bind(splat(x[(row + i) * self.x_stride + column], lanes))
                    for v in range(vectors):
                        total[i * vectors + v] = total[i * vectors + v] + value * weights[v]
            for i in range(count):
                for v in range(vectors):
                    result, at = total[i * vectors + v], panel * self.panel + v * lanes
                    if bias is not None:
                        result = result + bias[ramp(at, lanes)]
                    T.buffer_store(y, result, [ramp((row + i) * self.y_stride + at, lanes)])

        block = max(rows_at_once, min(512, L2_BYTES // (4 * self.k)) // rows_at_once * rows_at_once)
        with T.serial(0, (arguments.rows + block - 1) // block) as index:
            first = T.Bind(index * block)
            count = T.Bind(T.min(arguments.rows - first, block))
            full = T.Bind(count // rows_at_once)
            with arguments.share(self.tiles) as panel:
                with T.serial(0, full) as at:
                    tile(panel, first + at * rows_at_once, rows_at_once)
                with T.serial(full * rows_at_once, count) as row:
                    tile(panel, first + row, 1)
