"""A model's weights as GGUF's tensors: named, stacked and ordered as llama.cpp's converter has them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from tokc.errors import TokcError
from tokc.exporters.gguf_blocks import ENCODERS, kind_of
from tokc.exporters.layouts import decoder_weights, joined
from tokc.importers.architecture import Architecture
from tokc.importers.checkpoint import Grid, Weight, dequantized
from tokc.importers.experts import stacked
from tokc.importers.gguf import ROPE_DIVISORS, ROPE_FACTORS
from tokc.importers.gguf_names import EXPERT_TENSORS, gguf_name
from tokc.importers.layouts import GATE_UP, QKV
from tokc.importers.rope import rope_parameters
from tokc.importers.rope_divisors import GIVEN, llama3_divisors
from tokc.importers.rope_scaling import kind_of as scaling_kind

Array = npt.NDArray[Any]

EXPERT = re.compile(r"^model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<index>\d+)\.(?P<part>\w+)\.weight$")
PRECISE = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight")  # stay in f32
SHARED_GATE = "ffn_gate_inp_shexp.weight"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be written: `load` returns u8[rows, bytes of a row], or f32 or f16 of `shape`."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(self.shape[-1] // block * size)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows."""
        return int(math.prod(self.shape[:-1]) * self.row_bytes)


def gguf_tensors(weights: Mapping[str, Weight], architecture: Architecture, plain: Kind) -> list[GgufTensor]:
    """Return the tensors of a model's weights; what lies on no grid of GGUF's becomes `plain`.

    Raises: TokcError if GGUF has no name for one.
    """
    kept = decoder_weights(weights, architecture)
    if architecture.fused_qkv != "apart":
        kept = joined(kept, QKV, "qkv_proj")
    if architecture.family.fused_gate_up:
        kept = joined(kept, GATE_UP, "gate_up_proj")
    single = {name: weight for name, weight in kept.items() if not EXPERT.match(name)}
    tensors = [_tensor(name, weight, architecture, plain) for name, weight in single.items()]
    return [*tensors, *_expert_tensors(kept, plain)]


def rope_tensors(source: Mapping[str, object], head_dim: int) -> list[GgufTensor]:
    """Return the divisors of rotary frequencies that a configuration states or implies."""
    rope = rope_parameters(source)
    kind = scaling_kind(rope)
    if kind == "llama3":
        return [_vector(ROPE_DIVISORS, llama3_divisors(rope, float(str(rope["rope_theta"])), head_dim))]
    if kind == GIVEN:
        return [_vector(ROPE_DIVISORS, np.asarray(rope[GIVEN], np.float32))]
    if kind == "longrope":
        return [_vector(tensor, np.asarray(rope[key], np.float32)) for key, tensor in ROPE_FACTORS.items()]
    return []


def _vector(name: str, values: npt.NDArray[np.float32]) -> GgufTensor:
    return GgufTensor(name, Kind.F32, values.shape, lambda: values)


def _expert_tensors(weights: Mapping[str, Weight], plain: Kind) -> Iterator[GgufTensor]:
    """Yield one tensor [experts, rows, columns] for each projection of each layer of experts."""
    found: dict[tuple[str, str], list[Weight]] = {}
    for name, weight in weights.items():
        matched = EXPERT.match(name)
        if matched is not None:
            found.setdefault((matched["layer"], matched["part"]), []).append(weight)
    names = {part: name for name, part in EXPERT_TENSORS.items()}
    for (layer, part), experts in found.items():
        name, shape = f"blk.{layer}.{names[part]}.weight", (len(experts), *experts[0].shape)
        yield _encoded(name, stacked(experts), shape, plain, None)


def _tensor(name: str, weight: Weight, architecture: Architecture, plain: Kind) -> GgufTensor:
    """Return a weight as GGUF has it."""
    theirs = gguf_name(name, architecture.family)
    if theirs is None:
        raise TokcError(f"tensor '{name}' has no name in GGUF", hint="export the model with --to hf")
    shape = weight.shape[1:] if theirs.endswith(SHARED_GATE) else weight.shape
    order = _row_order(name, weight.shape[0], architecture)
    return _encoded(theirs, weight, shape, Kind.F32 if theirs.endswith(PRECISE) else plain, order)


def _encoded(name: str, weight: Weight, shape: Sequence[int], plain: Kind, order: Array | None) -> GgufTensor:
    """Return a weight, its rows in `order` if one is given, on a grid if GGUF has it."""
    kind = Kind.F32 if len(shape) == 1 else kind_of(weight, plain)
    if isinstance(weight, Grid) and kind in ENCODERS:
        encode = ENCODERS[kind]
        return GgufTensor(name, kind, tuple(shape), lambda: _taken(encode(weight), order))
    dtype = np.float16 if kind is Kind.F16 else np.float32

    def load() -> Array:
        return _taken(dequantized(weight), order).astype(dtype)

    return GgufTensor(name, kind, tuple(shape), load)


def _taken(rows: Array, order: Array | None) -> Array:
    return rows if order is None else rows[order]


def _row_order(name: str, rows: int, architecture: Architecture) -> Array | None:
    """Return which of our rows each of the file's is, where a file interleaves the halves of a head."""
    config = architecture.config
    if not architecture.family.permuted_gguf:
        return None
    for part, heads in ((".q_proj.", config.heads), (".k_proj.", config.kv_heads)):
        if part in name and rows == heads * config.head_dim:
            index = np.arange(rows, dtype=np.int64)
            return index.reshape(heads, 2, config.head_dim // 2).swapaxes(1, 2).reshape(-1)
    return None
