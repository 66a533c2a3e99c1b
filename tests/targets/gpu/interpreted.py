"""Runs a GPU kernel in Triton's interpreter, over numpy arrays in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from tokc.targets.gpu.kernel import INFO, INFO_SIZE, Kernel
from tokc.targets.plan import Axis

Array = npt.NDArray[np.generic]
DTYPES = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "i8": np.int8, "u8": np.uint8}


def info(**sizes: int) -> npt.NDArray[np.int32]:
    """Return the step's sizes as kernels read them."""
    found = np.zeros(INFO_SIZE, np.int32)
    for name, size in sizes.items():
        found[INFO.index(name)] = size
    return found


def extent(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return how many programs an axis has."""
    programs = axis.times * (1 if axis.symbol is None else -(-sizes[axis.symbol] // axis.per))
    return programs if axis.most is None else min(programs, axis.most)


def interpret(kernel: Kernel, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
    """Launch a kernel over C-contiguous arrays, by argument name, in place.

    `sizes` are the grid's symbols; they may exceed those in `info`, as in a launch for a larger bucket.
    """
    import torch

    tensors = {}
    for name, dtype in kernel.args:
        array = arrays[name]
        assert array.dtype == DTYPES.get(dtype, array.dtype), f"{name} is {array.dtype}, not {dtype}"
        assert array.flags.c_contiguous, f"{name} is not contiguous"
        tensors[name] = torch.from_numpy(array.reshape(-1))
    grid = tuple(extent(axis, sizes) for axis in kernel.grid)
    kernel.function()[grid](**tensors, **kernel.constants)


@contextmanager
def products_in_order() -> Iterator[None]:
    """Let `tl.dot` sum over its inner axis in one order for every row, as a matrix unit does.

    The interpreter asks BLAS, which sums a row in another order where it lies elsewhere in its tile, so that
    nothing could be compared bit by bit.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: object, a: Any, b: Any, d: Any, *__: object) -> Any:
        left, right = (each.data.astype(d.data.dtype) for each in (a, b))
        found = np.zeros_like(d.data)
        for k in range(left.shape[1]):
            found += left[:, k, None] * right[k]
        return TensorHandle(found + d.data, d.dtype.scalar)

    with patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield
