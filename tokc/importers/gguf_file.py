"""GGUF files: the metadata, and the tensors as lazy weights.

The header is read here and not by the `gguf` package, whose reader takes seconds for a large vocabulary and
lets numpy complain about truncated files. The package's tables and dequantizers are used for the tensors.
"""

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from gguf import GGMLQuantizationType as Quantization

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import STACK_RANK, Dense, Grid, MappedBytes, Weight, lazy
from tokc.importers.gguf_grids import GRIDS, NARROW, PLAIN, BlockGrid
from tokc.importers.mapping import mapped
from tokc.ir.rewrite import STORED_AS

Metadata = Mapping[str, object]
Rows = npt.NDArray[np.int64]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
# value type -> struct format; 8 is a string, 9 an array
SCALARS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
SPLIT_COUNT = "split.count"
SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class Tensor:
    """Describe a tensor: `shape` with the widest stride first, `data` its bytes, [rows, bytes of a row]."""

    name: str
    shape: tuple[int, ...]
    kind: Quantization
    data: MappedBytes

    def weight(self, order: Rows | None = None) -> Weight:
        """Return the weight, its rows taken in `order`; a quantized matrix stays on its own grid.

        Raises: ImportRefused if the type cannot be read.
        """
        grid = GRIDS.get(self.kind)
        if grid is None and self.kind not in PLAIN:
            raise ImportRefused(
                f"tensor '{self.name}' is of type {self.kind.name}; supported are "
                + ", ".join(kind.name for kind in (*PLAIN, *GRIDS)),
                hint="take another quantization of the model",
            )
        if grid is not None and len(self.shape) == 2:
            return self._grid(grid, order)
        if self.kind is Quantization.F32 and order is None:
            return Dense(ir.Tensor(self.data.view(np.float32).reshape(self.shape), dtype=ir.DataType.FLOAT))
        return Dense(lazy(lambda: self.dequantized(order), ir.DataType.FLOAT, self.shape))

    def matrices(self) -> "Iterator[Tensor]":
        """Yield each matrix of a stack [n, rows, columns] as a tensor of its own."""
        rows = math.prod(self.shape[1:-1])
        for index in range(self.shape[0] if len(self.shape) == STACK_RANK else 0):
            data = self.data[index * rows : (index + 1) * rows]
            yield Tensor(f"{self.name}.{index}", self.shape[1:], self.kind, data)

    def dequantized(self, order: Rows | None = None) -> npt.NDArray[np.float32]:
        """Return the values in f32."""
        if len(self.shape) == 1:
            values = np.asarray(gguf.dequantize(self.data.reshape(-1), self.kind), dtype=np.float32)
            return values if order is None else values[order]
        values = gguf.dequantize(self._rows(order), self.kind)
        return np.asarray(values, dtype=np.float32).reshape(self.shape)

    def _rows(self, order: Rows | None) -> MappedBytes:
        return self.data if order is None else self.data[order]

    def _grid(self, grid: BlockGrid, order: Rows | None) -> Grid:
        rows, columns = self.shape
        dtype = ir.DataType.FLOAT16 if grid.half else ir.DataType.FLOAT
        groups = (rows, columns // grid.group)

        def blocks() -> MappedBytes:
            return self._rows(order).reshape(-1, gguf.GGML_QUANT_SIZES[self.kind][1])

        def codes() -> npt.NDArray[np.generic]:
            found = grid.unpacked(blocks(), self.kind).reshape(self.shape)
            return found.view(ml_dtypes.uint4) if grid.bits == NARROW else found

        def parts(read: Callable[[MappedBytes], npt.NDArray[np.float32]]) -> ir.LazyTensor:
            return lazy(lambda: read(blocks()).reshape(groups).astype(dtype.numpy()), dtype, groups)

        dtype_of_codes = ir.DataType.UINT4 if grid.bits == NARROW else ir.DataType.INT8
        q = lazy(codes, dtype_of_codes, self.shape)
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        q.meta[STORED_AS] = (self.kind.name, 8 * size / block)
        return Grid(
            q=q,
            scale=parts(grid.scales),
            offset=None if grid.offsets is None else parts(grid.offsets),
            zero_point=grid.zero_point,
            block_size=grid.group,
        )


@dataclass(frozen=True)
class GgufFile:
    """Hold a model's metadata and tensors; `paths` are its files, more than one if it is split."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    paths: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read a file's header, and those of the other parts if it is one of several, and map the tensors.

        Raises: ImportRefused if a file is no GGUF file, truncated, or missing.
        """
        parts = split_files(path)
        files = [cls._open(part) for part in parts]
        count = files[0].metadata.get(SPLIT_COUNT, 0)
        if isinstance(count, int) and count > len(files):
            raise ImportRefused(
                f"'{path.name}' is the first of {count} files, and its name does not tell the others'",
                where=str(path),
                hint=f"give the files their names back: NAME-00001-of-{count:05d}.gguf and so on",
            )
        tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
        return cls(path, files[0].metadata, tensors, parts)

    @classmethod
    def _open(cls, path: Path) -> "GgufFile":
        data = mapped(path) if path.stat().st_size else np.empty(0, np.uint8)
        if data[:4].tobytes() != MAGIC:
            raise ImportRefused(
                f"'{path.name}' is not a GGUF file", where=str(path), hint="fetch the file again"
            )
        try:
            return _Header(path, data).parse()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise ImportRefused(
                f"'{path.name}' is truncated or damaged in its header: {error}",
                where=str(path),
                hint="fetch the file again",
            ) from error


def split_files(path: Path) -> tuple[Path, ...]:
    """Return all files of the model that a file is a part of, itself if it is whole.

    Raises: ImportRefused if one is missing.
    """
    named = SPLIT_NAME.match(path.name)
    if named is None:
        return (path,)
    count = int(named["count"])
    parts = tuple(
        path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)
    )
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" (nor are {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ImportRefused(
            f"part '{missing[0]}' of the model is missing{more}",
            where=str(path),
            hint="fetch all parts into one folder",
        )
    return parts


class _Header:
    """Walk over a file's header."""

    def __init__(self, path: Path, data: MappedBytes) -> None:
        self.path, self.data, self.at = path, data, len(MAGIC)
        self.view = memoryview(data.data)

    def parse(self) -> GgufFile:
        version = int(self._number("I"))
        if version not in VERSIONS:
            raise self._refused(f"it is of version {version}; supported are 2 and 3")
        count, keys = int(self._number("Q")), int(self._number("Q"))
        metadata = {self._string(): self._value(int(self._number("I"))) for _ in range(keys)}
        entries = [self._entry() for _ in range(count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        assert isinstance(alignment, int), "general.alignment is a number"
        start = -(-self.at // alignment) * alignment
        tensors = {entry[0]: self._tensor(start, *entry) for entry in entries}
        return GgufFile(self.path, metadata, tensors)

    def _number(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(f"<{code}", self.view, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def _string(self) -> str:
        length = int(self._number("Q"))
        if length > len(self.data) - self.at:
            raise struct.error(
                f"a text of {length} bytes begins {len(self.data) - self.at} bytes before the end"
            )
        text = self.data[self.at : self.at + length].tobytes()
        self.at += length
        return text.decode("utf-8", errors="replace")

    def _value(self, kind: int) -> object:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise struct.error(f"unknown value type {kind}")
        return self._number(SCALARS[kind])

    def _array(self) -> list[object]:
        kind, length = int(self._number("I")), int(self._number("Q"))
        if kind not in SCALARS:
            return [self._value(kind) for _ in range(length)]
        code = SCALARS[kind]
        size = struct.calcsize(code) * length
        if size > len(self.data) - self.at:
            raise struct.error(
                f"an array of {size} bytes begins {len(self.data) - self.at} bytes before the end"
            )
        values = np.frombuffer(self.view, np.dtype(code).newbyteorder("<"), length, self.at)
        self.at += size
        return list(values.tolist())

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = [int(self._number("Q")) for _ in range(int(self._number("I")))]
        return name, tuple(reversed(dimensions)), int(self._number("I")), int(self._number("Q"))

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        try:
            quantization = Quantization(kind)
        except ValueError as error:
            raise self._refused(f"tensor '{name}' is of unknown type {kind}") from error
        block, size = gguf.GGML_QUANT_SIZES[quantization]
        row_bytes = shape[-1] // block * size
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        begin, end = start + offset, start + offset + rows * row_bytes
        if shape[-1] % block:
            raise self._refused(
                f"rows of tensor '{name}' have {shape[-1]} elements, no whole blocks of {block}"
            )
        if end > len(self.data):
            raise self._refused(
                f"it is truncated: tensor '{name}' ends {end - len(self.data)} bytes past the file's end"
            )
        return Tensor(name, shape, quantization, self.data[begin:end].reshape(rows, row_bytes))

    def _refused(self, what: str) -> ImportRefused:
        return ImportRefused(
            f"'{self.path.name}' cannot be read: {what}", where=str(self.path), hint="fetch the file again"
        )
