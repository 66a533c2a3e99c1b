"""Round to nearest: the method that looks at nothing but the weight itself."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tokc.passes.quantization.grid import F32, Grid, Quantized, row_chunks


@dataclass(frozen=True)
class RoundToNearest:
    """Quantize each group on its own to the grid that spans it.

    Every method is a class with this interface: `quantize(w, grid)` for one weight [out, in], f32.
    """

    name: ClassVar[str] = "rtn"
    threads: int = 2

    def quantize(self, w: F32, grid: Grid) -> Quantized:
        """Return the codes and scales of `w`; works in row chunks, so that temporaries stay small."""
        with ThreadPoolExecutor(self.threads) as pool:
            parts = list(pool.map(lambda rows: grid.quantize(w[rows]), row_chunks(*w.shape)))
        offsets = [part.offset for part in parts if part.offset is not None]
        return Quantized(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scale for part in parts]),
            np.concatenate(offsets) if offsets else None,
        )
