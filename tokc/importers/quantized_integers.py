"""Integer codes with scales and zero points, as GPTQ, AWQ and compressed-tensors store them.

All mean ``w = (q - zero_point) * scale``, both of them one a group of columns. One zero point in the
middle of the codes makes a grid symmetric; others become an offset, ``-zero_point * scale``, exact in f32.
Where columns were sorted by activations (`desc_act`), groups are no runs, and each column has a scale.

Source: GPTQModel (format `gptq` stores zero points less one, `gptq_v2` as they are), AutoAWQ (`gemm`),
compressed-tensors (formats `pack-quantized`, `int-quantized`, and the two of FP4).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.bit_packing import WORD, unpacked, unpacked_awq, words_of
from tokc.importers.checkpoint import Arrays, Grid, Weight, lazy
from tokc.importers.quantized_floats import float8_weights

Array = npt.NDArray[Any]
Config = Mapping[str, object]

BYTE = 8  # bits
MIDDLE = 8  # the zero point of symmetric codes of 4 bits
GPTQ_BITS, AWQ_BITS = (2, 3, 4, 8), (4,)
FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # e2m1, twice its value
PACKED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
          "mxfp4-pack-quantized", "mixed-precision", "dense")  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """State unsigned codes of a weight [out, in], a group each `group` columns.

    `zeros` and `scales` give [out, groups]; `zero` is the zero point if it is one for all; `columns` names
    each column's group if groups are no runs.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    codes: Callable[[], Array]
    scales: Callable[[], Array]
    zeros: Callable[[], Array]
    zero: int | None
    columns: Array | None = None

    def grid(self) -> Grid:
        """Return the weight on its grid; tensors are unpacked when they are read."""
        wide = self.bits == BYTE
        middle = 1 << self.bits - 1
        centred = self.zero == middle
        # Codes of 8 bits are stored signed; narrow ones around zero are moved to the middle of 4 bits.
        shift = -middle if wide else MIDDLE - middle if centred else 0
        block = 1 if self.columns is not None else self.group
        groups = (self.shape[0], -(-self.shape[1] // block))
        dtype = ir.DataType.INT8 if wide else ir.DataType.UINT4

        def codes() -> Array:
            moved = self.codes().astype(np.int16) + np.int16(shift)
            return moved.astype(np.int8) if wide else moved.astype(np.uint8).view(ml_dtypes.uint4)

        def offsets() -> Array:
            away = self.zeros().astype(np.float32) + np.float32(shift)
            return self._spread(-away * self.scales().astype(np.float32))

        def scales() -> Array:
            return self._spread(self.scales().astype(np.float32))

        return Grid(
            q=lazy(codes, dtype, self.shape),
            scale=lazy(scales, ir.DataType.FLOAT, groups),
            offset=None if centred else lazy(offsets, ir.DataType.FLOAT, groups),
            zero_point=MIDDLE if centred and not wide else 0,
            block_size=block,
        )

    def _spread(self, per_group: Array) -> Array:
        return per_group if self.columns is None else per_group[:, self.columns]


def gptq_weights(config: Config, arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Take GPTQ's layers out of `arrays`: qweight i32[in * bits / 32, out], qzeros, scales, g_idx.

    Raises: ImportRefused for a width, format or shape that is not GPTQ's.
    """
    bits = _bits(config, "bits", GPTQ_BITS, origin)
    form = str(config.get("checkpoint_format", "gptq"))
    if form not in {"gptq", "gptq_v2"}:
        raise _refused(
            f"GPTQ weights in format '{form}' are not supported; supported are gptq, gptq_v2", origin
        )
    less = 1 if form == "gptq" else 0
    modules = _modules(arrays, ".qweight")
    return {f"{one}.weight": _gptq(arrays, one, bits, less, _Layer(config, one, origin)) for one in modules}


def _gptq(arrays: Arrays, module: str, bits: int, less: int, layer: "_Layer") -> Grid:
    words, packed_zeros, scales = layer.taken(arrays, "qweight", "qzeros", "scales")
    (groups, outs), ins = scales.shape, words.shape[0] * WORD // bits
    group = layer.group(ins)
    layer.fits("scales", scales, (-(-ins // group), outs))
    layer.fits("qzeros", packed_zeros, (groups, words_of(outs, bits)))
    layer.fits("qweight", words, (words.shape[0], outs))
    zeros = unpacked(packed_zeros, bits, outs).astype(np.int16) + np.int16(less)
    order = arrays.pop(f"{module}.g_idx", None)
    return Codes(
        (outs, ins),
        bits,
        group,
        lambda: unpacked(words.T, bits, ins),
        lambda: np.ascontiguousarray(scales.T),
        lambda: np.ascontiguousarray(zeros.T),
        _single(zeros),
        _sorted_columns(order, ins, group),
    ).grid()


def awq_weights(config: Config, arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Take AWQ's layers out of `arrays`: qweight i32[in, out / 8], qzeros i32[groups, out / 8], scales.

    Raises: ImportRefused for a width, version or shape that is not `gemm`'s.
    """
    bits = _bits(config, "bits", AWQ_BITS, origin)
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _refused(f"AWQ weights of version '{version}' are not supported; supported is gemm", origin)
    modules = _modules(arrays, ".qweight")
    return {f"{one}.weight": _awq(arrays, bits, _Layer(config, one, origin)) for one in modules}


def _awq(arrays: Arrays, bits: int, layer: "_Layer") -> Grid:
    words, packed_zeros, scales = layer.taken(arrays, "qweight", "qzeros", "scales")
    (groups, outs), ins = scales.shape, words.shape[0]
    group = layer.group(ins)
    layer.fits("scales", scales, (-(-ins // group), outs))
    layer.fits("qzeros", packed_zeros, (groups, words_of(outs, bits)))
    layer.fits("qweight", words, (ins, words_of(outs, bits)))
    zeros = unpacked_awq(packed_zeros)
    return Codes(
        (outs, ins),
        bits,
        group,
        lambda: np.ascontiguousarray(unpacked_awq(words).T),
        lambda: np.ascontiguousarray(scales.T),
        lambda: np.ascontiguousarray(zeros.T),
        _single(zeros),
    ).grid()


def compressed_weights(config: Config, arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Take compressed-tensors' layers out of `arrays`, whatever mixture of its formats they are in.

    Raises: ImportRefused for a format that is not supported, or sparse weights.
    """
    form = str(config.get("format", ""))
    if form not in PACKED:
        raise _refused(
            f"compressed-tensors weights in format '{form}' are not supported; supported are "
            + ", ".join(PACKED),
            origin,
        )
    weights: dict[str, Weight] = {}
    for module in _modules(arrays, ".weight_packed"):
        fp4 = arrays[f"{module}.weight_packed"].dtype == np.uint8
        weights[f"{module}.weight"] = (_fp4 if fp4 else _packed)(arrays, _Layer(config, module, origin))
    for module in [name for name in _modules(arrays, ".weight") if arrays[f"{name}.weight"].dtype == np.int8]:
        weights[f"{module}.weight"] = _bytes(arrays, _Layer(config, module, origin))
    block = {"weight_block_size": _block_structure(config)}
    return {**weights, **float8_weights(block, arrays, origin)}


def _packed(arrays: Arrays, layer: "_Layer") -> Grid:
    """Read weight_packed i32[out, in * bits / 32], weight_scale and weight_zero_point, packed over rows."""
    words, scale, shape = layer.taken(arrays, "weight_packed", "weight_scale", "weight_shape")
    outs, ins = (int(size) for size in shape)
    bits = next((bits for bits in GPTQ_BITS if words_of(ins, bits) == words.shape[1]), MIDDLE)
    layer.fits("weight_packed", words, (outs, words_of(ins, bits)))
    scales = _per_group(scale, outs)
    group = -(-ins // scales.shape[1])
    packed_zeros = arrays.pop(f"{layer.module}.weight_zero_point", None)
    middle = np.full(scales.shape, 1 << bits - 1, np.int16)
    if packed_zeros is None:
        zeros = middle
    elif packed_zeros.dtype == np.int8:
        zeros = _per_group(packed_zeros, outs).astype(np.int16) + middle
    else:
        zeros = np.ascontiguousarray(unpacked(packed_zeros.T, bits, outs).T).astype(np.int16)
    order = arrays.pop(f"{layer.module}.weight_g_idx", None)
    return Codes(
        (outs, ins),
        bits,
        group,
        lambda: unpacked(words, bits, ins),
        lambda: scales,
        lambda: zeros,
        _single(zeros),
        _sorted_columns(order, ins, group),
    ).grid()


def _bytes(arrays: Arrays, layer: "_Layer") -> Grid:
    """Read weight i8[out, in], one code a byte, with weight_scale and weight_zero_point."""
    codes, scale = layer.taken(arrays, "weight", "weight_scale")
    scales = _per_group(scale, codes.shape[0])
    stored = arrays.pop(f"{layer.module}.weight_zero_point", None)
    given = np.zeros(scales.shape, np.int16) if stored is None else _per_group(stored, len(codes))
    zeros = given.astype(np.int16) + np.int16(128)
    return Codes(
        (codes.shape[0], codes.shape[1]),
        BYTE,
        -(-codes.shape[1] // scales.shape[1]),
        lambda: (codes.astype(np.int16) + 128).astype(np.uint8),
        lambda: scales,
        lambda: zeros,
        _single(zeros),
    ).grid()


def _fp4(arrays: Arrays, layer: "_Layer") -> Grid:
    """Read FP4: weight_packed u8[out, in / 2], the first code low, scales of e4m3 or powers of two."""
    pairs, scale = layer.taken(arrays, "weight_packed", "weight_scale")
    whole = arrays.pop(f"{layer.module}.weight_global_scale", None)
    outs, ins = pairs.shape[0], pairs.shape[1] * 2

    def codes() -> Array:
        return FP4[np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(outs, ins)]

    def scales() -> Array:
        if scale.dtype == np.uint8:
            return np.ldexp(np.float32(0.5), scale.astype(np.int32) - 127)
        divisor = np.float32(1) if whole is None else whole.astype(np.float32).reshape(())
        return scale.astype(np.float32) / divisor * np.float32(0.5)

    return Grid(
        q=lazy(codes, ir.DataType.INT8, (outs, ins)),
        scale=lazy(scales, ir.DataType.FLOAT, (outs, scale.shape[1])),
        offset=None,
        zero_point=0,
        block_size=ins // scale.shape[1],
    )


def _per_group(values: Array, outs: int) -> Array:
    """Return one value a row and group, [out, groups]; a single value, or one a row, is spread."""
    table = values if values.ndim == 2 else values.reshape(-1, 1)
    return np.broadcast_to(table, (outs, table.shape[1]))


def _block_structure(config: Config) -> list[int] | None:
    """Return the blocks of rows and columns that a group of layers states."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        stated = group.get("weights") if isinstance(group, Mapping) else None
        size = stated.get("block_structure") if isinstance(stated, Mapping) else None
        if isinstance(size, str):
            size = [int(part) for part in size.split("x")]
        if isinstance(size, list):
            return size
    return None


def _modules(arrays: Arrays, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in arrays if name.endswith(suffix)]


@dataclass(frozen=True)
class _Layer:
    """Name a layer whose tensors are read, for what is said if they are wrong."""

    config: Config
    module: str
    origin: str

    def taken(self, arrays: Arrays, *names: str) -> list[Array]:
        """Take the layer's tensors of these names out of `arrays`."""
        missing = [name for name in names if f"{self.module}.{name}" not in arrays]
        if missing:
            raise ImportRefused(
                f"tensor '{self.module}.{missing[0]}' is missing",
                where=self.origin,
                hint="fetch all files of the checkpoint",
            )
        return [arrays.pop(f"{self.module}.{name}") for name in names]

    def fits(self, name: str, array: Array, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape than the layer's other tensors ask for."""
        if array.shape != shape:
            raise ImportRefused(
                f"tensor '{self.module}.{name}' has shape {list(array.shape)}, "
                f"its layer asks for {list(shape)}",
                where=self.origin,
                hint="config.json and the weights are of different models; fetch both again",
            )

    def group(self, ins: int) -> int:
        """Return how many columns share a scale; -1 in the configuration stands for all of a row."""
        size = self.config.get("group_size", -1)
        return size if isinstance(size, int) and size > 0 else ins


def _single(zeros: Array) -> int | None:
    """Return the zero point that all groups share, None if they differ."""
    first = int(zeros.flat[0])
    return first if bool((zeros == first).all()) else None


def _sorted_columns(order: Array | None, ins: int, group: int) -> Array | None:
    """Return each column's group if groups are no runs of neighbouring columns."""
    if order is None or bool((order < 0).all()):
        return None
    runs = np.arange(ins) // group
    return None if bool((order == runs).all()) else order.astype(np.int64)


def _bits(config: Config, key: str, known: tuple[int, ...], origin: str) -> int:
    bits = config.get(key)
    if bits not in known:
        supported = ", ".join(str(one) for one in known)
        method = str(config.get("quant_method")).upper()
        raise _refused(
            f"{method} weights of '{bits}' bits are not supported; supported are {supported}", origin
        )
    return int(str(bits))


def _refused(problem: str, origin: str) -> ImportRefused:
    return ImportRefused(problem, where=origin, hint="take another quantization of the model")
