"""Weights in 8-bit floats with scales: widened to f32 when they are read.

Source: the `fp8` and `fbgemm_fp8` methods of transformers, and compressed-tensors' `float-quantized`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import Arrays, Dense, Weight, lazy

SCALES = ("weight_scale_inv", "weight_scale")  # both multiply; the names are those of the kernels' arguments


def float8_weights(config: Mapping[str, object], arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Take the fp8 weights and their scales out of `arrays`; return the weights.

    Raises: ImportRefused if a scale is missing or fits no blocks of its weight.
    """
    size = config.get("weight_block_size")
    block = (int(size[0]), int(size[1])) if isinstance(size, list) and len(size) == 2 else None
    weights: dict[str, Weight] = {}
    for name in [name for name, array in arrays.items() if is_float8(array)]:
        module = name.removesuffix(".weight")
        scales = [f"{module}.{scale}" for scale in SCALES if f"{module}.{scale}" in arrays]
        if not scales:
            raise ImportRefused(
                f"tensor '{name}' is in 8-bit floats and has no '{SCALES[0]}'",
                where=origin,
                hint="fetch all files of the checkpoint",
            )
        weights[name] = scaled_float(name, arrays.pop(name), arrays.pop(scales[0]), block, origin)
    return weights


def is_float8(array: npt.NDArray[np.generic]) -> bool:
    """Return whether an array holds 8-bit floats."""
    return array.dtype.itemsize == 1 and array.dtype.name.startswith("float8")


def scaled_float(
    name: str,
    codes: npt.NDArray[np.generic],
    scale: npt.NDArray[np.generic],
    block: tuple[int, int] | None,
    origin: str,
) -> Dense:
    """Return ``codes * scale``, with one scale for all, a row, or a `block` of rows and columns.

    Raises: ImportRefused if the scale has another shape.
    """
    rows, columns = codes.shape
    if scale.size == 1:
        shape, sizes = (1, 1), (rows, columns)
    elif scale.size == rows and scale.shape[0] == rows:
        shape, sizes = (rows, 1), (1, columns)
    elif block is not None and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
        shape, sizes = scale.shape, block
    else:
        raise ImportRefused(
            f"the scale of tensor '{name}' has shape {list(scale.shape)}, which fits no blocks of "
            f"{list(codes.shape)}",
            where=origin,
            hint="fetch config.json and the weights again",
        )

    def widened() -> npt.NDArray[np.float32]:
        values = scale.astype(np.float32).reshape(shape)
        spread = np.repeat(np.repeat(values, sizes[0], axis=0)[:rows], sizes[1], axis=1)[:, :columns]
        return codes.astype(np.float32) * spread

    return Dense(lazy(widened, ir.DataType.FLOAT, codes.shape))
