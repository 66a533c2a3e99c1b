"""Weights that are read when they are asked for, and safetensors files as a source of them.

A `Dense` weight is one f32 tensor. A `Grid` weight stays packed as its file packs it. Both point into the
mapped file, so a checkpoint of any size costs address space, not memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.mapping import mapped
from tokc.ir.rewrite import stored_alike

F32Array = npt.NDArray[np.float32]
MappedBytes = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[np.generic]]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES: Mapping[str, npt.DTypeLike] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# What quantized layers are stored in, beside DTYPES.
CODE_DTYPES: Mapping[str, npt.DTypeLike] = {
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
NAMES: Mapping[np.dtype[np.generic], str] = {
    np.dtype(dtype): name for name, dtype in ({**DTYPES, **CODE_DTYPES}).items()
}
STACK_RANK = 3
LENGTH_BYTES = 8
HEADER_LIMIT_BYTES = 100 << 20  # as the safetensors library has it


def static(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """Return a tensor's shape; all of a tensor's dimensions are numbers."""
    return tuple(int(str(size)) for size in tensor.shape)


@dataclass(frozen=True)
class Dense:
    """Hold a weight in f32, [out, in] or [width]."""

    tensor: ir.TensorProtocol

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape."""
        return static(self.tensor)


@dataclass(frozen=True)
class Grid:
    """Hold a weight on a grid: ``w = (q - zero_point) * scale (+ offset)``.

    Shapes: q [out, in]; scale, offset [out, blocks].
    """

    q: ir.TensorProtocol
    scale: ir.TensorProtocol
    offset: ir.TensorProtocol | None
    zero_point: int
    block_size: int = 32

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the weight's shape."""
        return static(self.q)


Weight = Dense | Grid


@dataclass
class Checkpoint:
    """Hand out weights by their Hugging Face names and remember which were asked for.

    `spare` names weights that a file may hold without the model having a place for them.
    """

    origin: str
    weights: Mapping[str, Weight]
    spare: frozenset[str] = frozenset()
    _taken: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        """Return whether there is a weight of this name."""
        return name in self.weights

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        """Return a weight that must have `shape`.

        Raises: ImportRefused if it is missing or of another shape.
        """
        weight = self.weights.get(name)
        if weight is None:
            raise ImportRefused(
                f"tensor '{name}' is missing",
                where=self.origin,
                hint="the download may be incomplete, or config.json describes another model; fetch it again",
            )
        if weight.shape != shape:
            raise ImportRefused(
                f"tensor '{name}' has shape {list(weight.shape)}, the configuration asks for {list(shape)}",
                where=self.origin,
                hint="the configuration and the weights are of different models; fetch both again",
            )
        self._taken.add(name)
        return weight

    def left(self) -> list[str]:
        """Return the names that nobody asked for."""
        return sorted(set(self.weights) - self._taken - self.spare)


def lazy(
    compute: Callable[[], npt.NDArray[np.generic]], dtype: ir.DataType, shape: tuple[int, ...]
) -> ir.LazyTensor:
    """Return a tensor that is computed anew each time it is read."""
    return ir.LazyTensor(lambda: ir.Tensor(compute(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape))


def widened(array: npt.NDArray[np.generic]) -> Dense:
    """Return an array as an f32 weight; f32 in place, narrower types cast when read."""
    if array.dtype == np.float32 and array.flags.aligned:
        return Dense(ir.Tensor(array, dtype=ir.DataType.FLOAT))
    return Dense(lazy(lambda: array.astype(np.float32), ir.DataType.FLOAT, array.shape))


def dequantized(weight: Weight) -> F32Array:
    """Return a weight's values in f32, rounded once a step as BlockDequantize does."""
    if isinstance(weight, Dense):
        return np.asarray(weight.tensor.numpy(), dtype=np.float32)
    values = weight.q.numpy().astype(np.float32) - np.float32(weight.zero_point)
    values *= _per_column(weight.scale, weight)
    if weight.offset is not None:
        values += _per_column(weight.offset, weight)
    return values


def _per_column(per_block: ir.TensorProtocol, weight: Grid) -> F32Array:
    values = per_block.numpy().astype(np.float32)
    return np.asarray(np.repeat(values, weight.block_size, axis=1)[:, : weight.shape[1]])


def shifted(weight: Dense, offset: float) -> Dense:
    """Return a weight plus a constant, computed when read."""
    tensor = weight.tensor
    return Dense(lazy(lambda: tensor.numpy() + np.float32(offset), ir.DataType.FLOAT, weight.shape))


def selected(weight: Weight, rows: Sequence[int]) -> Weight:
    """Return some rows of a weight in the order given, picked when they are read; a grid stays a grid."""
    index = np.asarray(rows, np.int64)
    if isinstance(weight, Dense):
        return Dense(_picked(weight.tensor, index))
    offset = None if weight.offset is None else _picked(weight.offset, index)
    return replace(weight, q=_picked(weight.q, index), scale=_picked(weight.scale, index), offset=offset)


def _picked(tensor: ir.TensorProtocol, index: npt.NDArray[np.int64]) -> ir.LazyTensor:
    shape = (len(index), *static(tensor)[1:])
    return stored_alike(lazy(lambda: np.asarray(tensor.numpy())[index], tensor.dtype, shape), [tensor])


def transposed(weight: Weight, name: str, origin: str) -> Dense:
    """Return a weight [in, out] as [out, in].

    Raises: ImportRefused for a weight on a grid, whose blocks would lie across.
    """
    if isinstance(weight, Grid):
        raise ImportRefused(
            f"tensor '{name}' is quantized and stored transposed, which is not supported",
            where=origin,
            hint="take the model's unquantized checkpoint",
        )
    tensor, (columns, rows) = weight.tensor, weight.shape
    return Dense(lazy(lambda: np.ascontiguousarray(tensor.numpy().T), tensor.dtype, (rows, columns)))


def safetensors_arrays(folder: Path) -> Arrays:
    """Return a folder's tensors, single file or sharded, as they are stored, by their names in the files.

    Raises: ImportRefused if a file is missing, truncated or damaged, or a type is not known.
    """
    return {name: array for path in _files(folder) for name, array in file_arrays(path)}


def plain_weights(arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Return floating-point tensors as weights; NAME[n, .., ..] becomes matrices NAME.0 to NAME.(n - 1).

    Raises: ImportRefused if one is of another type.
    """
    for name, array in arrays.items():
        if NAMES[array.dtype] not in DTYPES:
            raise _unsupported(name, NAMES[array.dtype], origin)
    return {name: widened(array) for given in arrays.items() for name, array in _matrices(*given)}


def _matrices(name: str, array: npt.NDArray[np.generic]) -> list[tuple[str, npt.NDArray[np.generic]]]:
    """Cut a stack of matrices, which experts share a tensor in; other arrays stay whole."""
    stack = array.ndim == STACK_RANK
    return [(f"{name}.{index}", one) for index, one in enumerate(array)] if stack else [(name, array)]


def read_json(path: Path) -> dict[str, object]:
    """Return a JSON object from a file.

    Raises: ImportRefused if it cannot be read or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImportRefused(
            f"'{path.name}' cannot be read: {error}", where=str(path), hint="fetch the file again"
        ) from error
    if not isinstance(value, dict):
        raise ImportRefused(
            f"'{path.name}' is not a JSON object", where=str(path), hint="fetch the file again"
        )
    return cast("dict[str, object]", value)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.is_file():
        single = folder / SINGLE_FILE
        if single.is_file():
            return [single]
        raise ImportRefused(
            _no_weights(folder), where=str(folder), hint="tokc reads .safetensors and .gguf weights"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ImportRefused("the index has no 'weight_map'", where=str(index), hint="fetch the file again")
    paths = [folder / str(name) for name in sorted(set(shards.values()))]
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise ImportRefused(
                f"shard '{path.name}' is missing",
                where=str(index),
                hint="fetch the missing file into the folder",
            )
    return paths


def _no_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*") if path.suffix in {".bin", ".pth", ".pt", ".gguf"})
    found = f"; it holds {', '.join(others)}" if others else ""
    return f"the folder has no '{SINGLE_FILE}' and no '{INDEX_FILE}'{found}"


def file_arrays(path: Path) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield the tensors of one safetensors file as they are stored.

    Raises: ImportRefused if it is truncated or damaged, or a type is not known.
    """
    header, data = _header(path)
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _array(path, name, entry, data)


def file_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself.

    Raises: ImportRefused if it is truncated or damaged.
    """
    stated = _header(path)[0].get("__metadata__")
    return {str(key): str(text) for key, text in stated.items()} if isinstance(stated, dict) else {}


def _unsupported(name: str, dtype: str, origin: str) -> ImportRefused:
    return ImportRefused(
        f"tensor '{name}' has type '{dtype}'; supported are {', '.join(DTYPES)}",
        where=origin,
        hint="take the model's unquantized checkpoint, in bf16, fp16 or fp32",
    )


def _header(path: Path) -> tuple[dict[str, object], MappedBytes]:
    size = path.stat().st_size
    if size <= LENGTH_BYTES:
        raise _damaged(path, f"the file has only {size} bytes")
    data = mapped(path)
    length = int.from_bytes(data[:LENGTH_BYTES].tobytes(), "little")
    end = LENGTH_BYTES + length
    if length > HEADER_LIMIT_BYTES or end > size:
        raise _damaged(path, f"its header claims {length} bytes of a file of {size} bytes")
    try:
        header = json.loads(data[LENGTH_BYTES:end].tobytes())
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    return header, data[end:]


def _array(path: Path, name: str, entry: object, data: MappedBytes) -> npt.NDArray[np.generic]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _damaged(path, f"the entry of tensor '{name}' is not understood")
    known = {**DTYPES, **CODE_DTYPES}
    if entry["dtype"] not in known:
        raise _unsupported(name, str(entry["dtype"]), str(path))
    dtype = np.dtype(known[entry["dtype"]])
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if stop > data.size:
        raise _damaged(
            path, f"it is truncated: tensor '{name}' ends {stop - data.size} bytes past the file's end"
        )
    if stop - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise _damaged(
            path, f"tensor '{name}' has {stop - start} bytes, which do not fit its shape {list(shape)}"
        )
    return data[start:stop].view(dtype).reshape(shape)


def _damaged(path: Path, what: str) -> ImportRefused:
    return ImportRefused(f"'{path.name}' is damaged: {what}", where=str(path), hint="fetch the file again")
