"""Takes rotations into weights: what a weight becomes when the stream or the heads about it turn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokc.ir.rewrite import initializer
from tokc.passes.quantization.grid import F32, row_chunks
from tokc.passes.quantization.stored import stored_weight
from tokc.passes.rotation.orthogonal import F64, Rotation


@dataclass(frozen=True)
class Heads:
    """The rotation of each head, and the columns (or rows) from `start` to `stop` that hold them."""

    rotation: Rotation
    start: int
    stop: int


@dataclass(frozen=True)
class Fold:
    """What one weight [out, in] takes in; None leaves it out.

    `norm` is the weight of the norm before it, f32 [in]. `reads` turns the columns with what it reads,
    `writes` the rows with what it writes to; `head_columns` and `head_rows` do so for single heads.
    """

    norm: ir.TensorProtocol | None = None
    reads: Rotation | None = None
    head_columns: Heads | None = None
    writes: Rotation | None = None
    head_rows: Heads | None = None

    def weight(self, w: F32) -> F32:
        """Return the weight with everything taken in."""
        turned = w.astype(np.float32)
        for rows in row_chunks(*w.shape):
            turned[rows] = self._columns(w[rows].astype(np.float64).T).T
        for columns in row_chunks(*w.shape[::-1]):
            if self.writes is not None or self.head_rows is not None:
                turned[:, columns] = self._rows(turned[:, columns].astype(np.float64))
        return turned

    def bias(self, b: F32) -> F32:
        """Return the bias [out] of such a weight."""
        return self._rows(b.astype(np.float64)[:, None])[:, 0].astype(np.float32)

    @property
    def turns_rows(self) -> bool:
        """Return whether a bias changes."""
        return self.writes is not None or self.head_rows is not None

    def _columns(self, turned: F64) -> F64:
        """Fold into f64 [in, n]."""
        if self.norm is not None:
            turned = turned * self.norm.numpy().astype(np.float64)[:, None]
        if self.head_columns is not None:
            turned = _turn_heads(turned, self.head_columns)
        return turned if self.reads is None else self.reads.turn(turned)

    def _rows(self, turned: F64) -> F64:
        """Fold into f64 [out, n]."""
        if self.head_rows is not None:
            turned = _turn_heads(turned, self.head_rows)
        return turned if self.writes is None else self.writes.turn(turned)


def folded_weight(value: ir.Value, fold: Fold) -> ir.Value:
    """Return a weight that is read, and folded, when it is needed."""
    stored, source = stored_weight(value), value.const_value

    def load() -> ir.TensorProtocol:
        if stored is not None:
            w = stored.dequantized()
        else:
            assert source is not None, f"'{value.name}' is no constant"
            w = np.asarray(source.numpy(), np.float32)
        return ir.Tensor(fold.weight(w))

    return _lazy(load, value)


def folded_bias(value: ir.Value, fold: Fold) -> ir.Value:
    """Return a bias that is read, and folded, when it is needed."""
    source = value.const_value
    assert source is not None, f"'{value.name}' is no constant"
    return _lazy(lambda: ir.Tensor(fold.bias(np.asarray(source.numpy(), np.float32))), value)


def _turn_heads(turned: F64, heads: Heads) -> F64:
    """Turn each head within `turned` [heads * dim, n]."""
    dim, count = heads.rotation.size, turned.shape[1]
    part = turned[heads.start : heads.stop].reshape(-1, dim, count)
    side_by_side = heads.rotation.turn(part.transpose(1, 0, 2).reshape(dim, -1))
    result = turned.copy()
    in_turn = side_by_side.reshape(dim, -1, count).transpose(1, 0, 2)
    result[heads.start : heads.stop] = in_turn.reshape(-1, count)
    return result


def _lazy(load: Callable[[], ir.TensorProtocol], like: ir.Value) -> ir.Value:
    assert like.shape is not None, f"'{like.name}' has no shape"
    shape = ir.Shape([int(dim) for dim in like.shape.numpy()])
    return initializer(ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=shape), str(like.name))
