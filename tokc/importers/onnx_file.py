"""Read an .onnx file: its graph, its weights where they lie, and what its inputs and outputs are for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import MappedBytes
from tokc.importers.mapping import mapped
from tokc.importers.raising.sample import Array, Sample, Shape, Size

IDS, MASK, POSITIONS, CACHE_POSITION = "input_ids", "attention_mask", "position_ids", "cache_position"
CACHE_RANK = 4  # [batch, kv_heads, past, head_dim]
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
EXPORT = "export the decoder with input_ids, attention_mask, position_ids and past_key_values"


@dataclass(frozen=True)
class Interface:
    """Hold a graph's inputs by what they are for; a graph without `cache` sees whole sequences at once."""

    ids: ir.Value
    logits: ir.Value
    mask: ir.Value | None
    positions: ir.Value | None
    cache_position: ir.Value | None
    cache: tuple[ir.Value, ...]


def read_onnx(path: Path) -> ir.Model:
    """Return an ONNX model without functions, its external data mapped.

    Raises: ImportRefused if it is damaged, or weights that it names are missing.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx-ir raise errors of many kinds
        problem = f"'{path.name}' is damaged: {[*str(error).splitlines(), 'no ONNX model'][0]}"
        raise ImportRefused(problem, where=str(path), hint="export or fetch the file again") from error
    maps: dict[Path, MappedBytes] = {}
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _mapped_tensor(value.const_value, path, maps)
    InlinePass()(model)
    for node in model.graph:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise ImportRefused(
                f"node '{node.name}' is '{node.op_type}', a branch, which is not supported",
                where=str(path),
                hint="export the decoder with its cache as one graph, not 'merged' of two",
            )
    return model


def external_files(path: Path) -> list[Path]:
    """Return the files beside a graph that hold its weights; none of a file that is no graph."""
    try:
        model = ir.load(path)
    except Exception:  # protobuf and onnx-ir raise errors of many kinds; whoever reads the file tells
        return []
    tensors = (value.const_value for value in model.graph.initializers.values())
    names = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return [path.parent / name for name in sorted(names)]


def _mapped_tensor(tensor: ir.ExternalTensor, path: Path, maps: dict[Path, MappedBytes]) -> ir.TensorProtocol:
    file = path.parent / tensor.location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        problem = f"weight '{tensor.name}' lies outside of the model's folder: '{tensor.location}'"
        raise ImportRefused(problem, where=str(path), hint="put the file beside the model and name it so")
    if not file.is_file() or not file.stat().st_size:
        raise ImportRefused(
            f"'{tensor.location}', which has the weights, is missing",
            where=str(path),
            hint=f"put it beside '{path.name}'",
        )
    data = maps.setdefault(file, mapped(file)) if file not in maps else maps[file]
    start, size = tensor.offset or 0, tensor.nbytes
    if start + size > data.size:
        end = f"weight '{tensor.name}' ends at byte {start + size} of {data.size}"
        problem = f"'{tensor.location}' is truncated: {end}"
        raise ImportRefused(problem, where=str(file), hint="fetch the file again")
    if tensor.dtype.itemsize < 1:  # packed: onnx-ir knows how
        return tensor
    array = (
        data[start : start + size].view(tensor.dtype.numpy()).reshape([int(str(dim)) for dim in tensor.shape])
    )
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def interface_of(graph: ir.Graph, origin: str) -> Interface:
    """Tell a graph's inputs by type, rank and name.

    Raises: ImportRefused for an input that a decoder of token ids has no place for.
    """
    integers = {str(value.name): value for value in graph.inputs if _rank(value) != CACHE_RANK}
    cache = tuple(value for value in graph.inputs if _rank(value) == CACHE_RANK)
    known = {name: integers.pop(name, None) for name in (IDS, MASK, POSITIONS, CACHE_POSITION)}
    ids = known[IDS]
    if ids is None and len(integers) == 1 and next(iter(integers.values())).dtype in INTEGERS:
        ids = integers.popitem()[1]  # the one input of a graph whose exporter gave it no name
    if ids is None or integers:
        what = (
            f"input '{next(iter(integers))}' has no place in a decoder"
            if integers
            else f"no input is '{IDS}'"
        )
        raise ImportRefused(what, where=origin, hint=EXPORT)
    outputs = [value for value in graph.outputs if value.name == "logits"] or list(graph.outputs[:1])
    return Interface(ids, outputs[0], known[MASK], known[POSITIONS], known[CACHE_POSITION], cache)


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)


def sampled(model: ir.Model, interface: Interface, size: Size, heads: tuple[int, int]) -> Sample:
    """Return a graph at a size, no token padded; `heads` of the cache: how many, how wide."""
    known = dict(_known(interface, size))
    shapes: dict[str, Shape] = {str(interface.ids.name): (size.batch, size.seq)}
    for value in interface.cache:
        shapes[str(value.name)] = (size.batch, heads[0], size.past, heads[1])
    return Sample(model, size, known, shapes)


def _known(interface: Interface, size: Size) -> Iterator[tuple[str, Array]]:
    positions = np.arange(size.past, size.total)
    for value, array in (
        (interface.mask, np.ones((size.batch, size.total))),
        (interface.positions, np.tile(positions, (size.batch, 1))),
        (interface.cache_position, positions),
    ):
        if value is not None and value.dtype is not None:
            yield str(value.name), array.astype(value.dtype.numpy())


def fixed_sizes(interface: Interface, origin: str) -> int | None:
    """Return the batch that a graph was made for, None if it takes any.

    Raises: ImportRefused if it was made for one number of tokens.
    """
    batch, seq = _dims(interface.ids)[:2]
    lengths = [seq, *(_dims(value)[2] for value in interface.cache)]
    if any(isinstance(length, int) for length in lengths):
        fixed = next(length for length in lengths if isinstance(length, int))
        raise ImportRefused(
            f"the graph was made for exactly {fixed} tokens",
            where=origin,
            hint="export with dynamic_shapes for the sequence and the cache",
        )
    return batch if isinstance(batch, int) else None


def _dims(value: ir.Value) -> list[int | ir.SymbolicDim]:
    return [] if value.shape is None else list(value.shape)
