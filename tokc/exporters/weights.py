"""The weights of a program under the names that Hugging Face gives them, whatever passes have run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from tokc.errors import TokcError
from tokc.importers.architecture import Architecture, architecture_of
from tokc.importers.checkpoint import Dense, Grid, Weight, dequantized, lazy, static
from tokc.importers.families import family_of
from tokc.importers.rope import Rope, rope_parameters
from tokc.importers.rope_divisors import GIVEN
from tokc.ir.program import Assets, ModelConfig, Program

CODES, SCALE, OFFSET = ".q", ".scale", ".offset"
MATRIX = 2  # dimensions of a weight
INTEGERS = (ir.DataType.UINT4, ir.DataType.INT8)
LAYERS = ("model.", "lm_head.")
SOURCE = "the configuration that the model was imported by"


@dataclass(frozen=True)
class Model:
    """Hold what is exported: weights by their Hugging Face names, sizes, and texts."""

    weights: Mapping[str, Weight]
    config: ModelConfig
    assets: Assets

    @classmethod
    def of(cls, program: Program) -> "Model":
        """Return a program's; weights that a pass stacked are cut apart again.

        Raises: TokcError if the program does not tell how it was imported.
        """
        if not program.assets.source_config:
            raise TokcError("the program lacks the configuration that it was imported by")
        weights = {
            name: weight for stacked in _stored(program) for name, weight in apart(*stacked, program.config)
        }
        if program.config.tied_embedding:
            weights = {name: weight for name, weight in weights.items() if not name.startswith("lm_head.")}
        return cls(weights, program.config, program.assets)

    def architecture(self, context: int | None = None) -> Architecture:
        """Return the decoder that the weights are of, as its source's configuration describes it."""
        source = self.assets.source_config
        rope = rope_parameters(source)
        given = rope.get("rope_type") == GIVEN
        stated = {**source, "rope_scaling": None} if given else source  # divisors are no scaling of a folder
        architecture = architecture_of(family_of(source, SOURCE), stated, context, SOURCE)
        if not given:
            return architecture
        divisors = tuple(float(one) for one in np.asarray(rope[GIVEN], np.float32))
        return replace(architecture, rope=Rope(architecture.rope.theta, divisors=divisors))

    def dequantized(self) -> "Model":
        """Return it with every weight on a grid in f32."""
        weights = {name: plain(weight) for name, weight in self.weights.items()}
        return Model(weights, self.config, self.assets)


def plain(weight: Weight) -> Dense:
    """Return a weight in f32, computed when it is read if it lies on a grid."""
    if isinstance(weight, Dense):
        return weight
    return Dense(lazy(lambda: dequantized(weight), ir.DataType.FLOAT, weight.shape))


def _stored(program: Program) -> Iterator[tuple[str, Weight]]:
    tensors = {name: value for name, value in program.graph.initializers.items() if name.startswith(LAYERS)}
    for name, value in tensors.items():
        weight, suffix = name.rpartition(".")[::2]
        if len(static(_constant(value))) > MATRIX:
            raise TokcError(
                f"'{name}' holds the weights of several experts in a form that no export has",
                hint="export the model itself, not an artifact of it",
            )
        if f".{suffix}" in {SCALE, OFFSET} and f"{weight}{CODES}" in tensors:
            continue
        if f".{suffix}" == CODES and f"{weight}{SCALE}" in tensors:
            yield weight, _grid(weight, value, tensors)
        else:
            yield name, Dense(_constant(value))


def _grid(name: str, codes: ir.Value, tensors: Mapping[str, ir.Value]) -> Grid:
    reader = next(iter(codes.uses())).node
    form = reader.attributes.get("format")
    if codes.dtype not in INTEGERS or (form is not None and form.as_string()):
        raise TokcError(
            f"weight '{name}' is in a float format, which no export has yet",
            hint="leave out cast-weights, or quantize to int4 or int8",
        )
    offset = tensors.get(f"{name}{OFFSET}")
    return Grid(
        q=_constant(codes),
        scale=_constant(tensors[f"{name}{SCALE}"]),
        offset=None if offset is None else _constant(offset),
        zero_point=reader.attributes.get_int("zero_point", 0),
        block_size=reader.attributes.get_int("block_size", 32),
    )


def _constant(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None, f"'{value.name}' is no constant"
    return value.const_value


def apart(name: str, weight: Weight, config: ModelConfig) -> Iterator[tuple[str, Weight]]:
    """Yield a weight under its name, or the parts of which a pass stacked it by rows under theirs."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    stacked = {
        ".qkv_proj.": ((".q_proj.", q), (".k_proj.", kv), (".v_proj.", kv)),
        ".gate_up_proj.": ((".gate_proj.", config.intermediate), (".up_proj.", config.intermediate)),
    }
    for whole, parts in stacked.items():
        if whole in name and ".experts." not in name and weight.shape[0] == sum(rows for _, rows in parts):
            first = 0
            for part, rows in parts:
                yield name.replace(whole, part), rows_of(weight, slice(first, first + rows))
                first += rows
            return
    yield name, weight


def rows_of(weight: Weight, rows: slice) -> Weight:
    """Return some rows of a weight, cut when they are read; a grid stays a grid."""
    if isinstance(weight, Dense):
        return Dense(_cut(weight.tensor, rows))
    offset = None if weight.offset is None else _cut(weight.offset, rows)
    return Grid(_cut(weight.q, rows), _cut(weight.scale, rows), offset, weight.zero_point, weight.block_size)


def _cut(tensor: ir.TensorProtocol, rows: slice) -> ir.LazyTensor:
    shape = (rows.stop - rows.start, *static(tensor)[1:])

    def cut() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy()[rows]), dtype=tensor.dtype)

    return ir.LazyTensor(cut, dtype=tensor.dtype, shape=ir.Shape(shape))
