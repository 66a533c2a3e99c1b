"""GGUF files: the metadata, and the tensors as lazy weights.

The header is read here and not by the `gguf` package, whose reader takes seconds for a large vocabulary and
lets numpy complain about truncated files. The package's tables and dequantizers are used for the tensors.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from gguf import GGMLQuantizationType as Quantization

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import Dense, Grid, MappedBytes, Weight, lazy
from tokc.importers.mapping import mapped

Metadata = Mapping[str, object]
Rows = npt.NDArray[np.int64]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
BLOCK = 32
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
SCALE_BYTES: Mapping[Quantization, int] = {Quantization.Q4_0: 2, Quantization.Q4_1: 4, Quantization.Q8_0: 2}


@dataclass(frozen=True)
class Tensor:
    """Describe a tensor: `shape` with the widest stride first, `data` its bytes, [rows, bytes of a row]."""

    name: str
    shape: tuple[int, ...]
    kind: Quantization
    data: MappedBytes

    def weight(self, order: Rows | None = None) -> Weight:
        """Return the weight, its rows taken in `order`; packed still if tokc computes on its grid."""
        if self.kind in SCALE_BYTES and len(self.shape) == 2:
            return self._grid(order)
        if self.kind is Quantization.F32 and order is None:
            return Dense(ir.Tensor(self.data.view(np.float32).reshape(self.shape), dtype=ir.DataType.FLOAT))
        return Dense(lazy(lambda: self.dequantized(order), ir.DataType.FLOAT, self.shape))

    def dequantized(self, order: Rows | None = None) -> npt.NDArray[np.float32]:
        """Return the values in f32."""
        if len(self.shape) == 1:
            values = np.asarray(gguf.dequantize(self.data.reshape(-1), self.kind), dtype=np.float32)
            return values if order is None else values[order]
        values = gguf.dequantize(self._rows(order), self.kind)
        return np.asarray(values, dtype=np.float32).reshape(self.shape)

    def _rows(self, order: Rows | None) -> MappedBytes:
        return self.data if order is None else self.data[order]

    def _grid(self, order: Rows | None) -> Grid:
        rows, columns = self.shape
        blocks = (rows, columns // BLOCK)
        wide = self.kind is Quantization.Q8_0
        return Grid(
            q=lazy(lambda: self._codes(order), ir.DataType.INT8 if wide else ir.DataType.UINT4, self.shape),
            scale=lazy(lambda: self._halves(order, 0), ir.DataType.FLOAT16, blocks),
            offset=(
                lazy(lambda: self._halves(order, 1), ir.DataType.FLOAT16, blocks)
                if self.kind is Quantization.Q4_1
                else None
            ),
            zero_point=8 if self.kind is Quantization.Q4_0 else 0,
            block_size=BLOCK,
        )

    def _blocks(self, order: Rows | None) -> MappedBytes:
        size = gguf.GGML_QUANT_SIZES[self.kind][1]
        return self._rows(order).reshape(self.shape[0], -1, size)

    def _halves(self, order: Rows | None, index: int) -> npt.NDArray[np.float16]:
        """Return a block's first or second fp16 number, the scale or the offset."""
        halves = np.ascontiguousarray(self._blocks(order)[:, :, 2 * index : 2 * index + 2])
        return halves.view(np.float16)[:, :, 0]

    def _codes(self, order: Rows | None) -> npt.NDArray[np.generic]:
        """Return one code an element; of 4-bit blocks the low halves of the bytes come first."""
        codes = self._blocks(order)[:, :, SCALE_BYTES[self.kind] :]
        if self.kind is Quantization.Q8_0:
            return np.ascontiguousarray(codes).view(np.int8).reshape(self.shape)
        split = np.concatenate([codes & 15, codes >> 4], axis=-1)
        return split.reshape(self.shape).view(ml_dtypes.uint4)


@dataclass(frozen=True)
class GgufFile:
    """Hold a file's metadata and tensors."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read a file's header and map its tensors.

        Raises: ImportRefused if it is no GGUF file, or truncated.
        """
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
