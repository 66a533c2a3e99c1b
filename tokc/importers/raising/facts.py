"""What a decoder's graph was found to compute, and where two graphs differ.

Weights are named by where they lie in their graph; the other numbers are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

F64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]

ROUNDINGS = 3 * 2.0**-23  # of a frequency below 1: its power, its quotient and its product
RELATIVE, ABSOLUTE = 1e-5, 2e-5  # of f32 constants and angles that were computed in two ways


@dataclass(frozen=True)
class Ref:
    """Point at a weight: `transposed` if the graph has [in, out]; if others share it, `rows` of [out, in].

    Rows are ranges, one after another, each from its first row to its last but one.
    """

    value: ir.Value
    transposed: bool = False
    rows: tuple[tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        """Print it as numpy would spell it."""
        rows = "" if self.rows is None else f"[{', '.join(f'{first}:{end}' for first, end in self.rows)}]"
        return f"{self.value.name}{'.T' if self.transposed else ''}{rows}"


@dataclass(frozen=True)
class Linear:
    """Hold ``x @ weight.T + bias``; weight [out, in]."""

    weight: Ref
    bias: Ref | None

    def part(self, rows: tuple[tuple[int, int], ...]) -> "Linear":
        """Return some of its outputs; it must be whole."""
        weight = Ref(self.weight.value, self.weight.transposed, rows)
        return Linear(weight, None if self.bias is None else Ref(self.bias.value, rows=rows))


@dataclass(frozen=True)
class Norm:
    """Hold a norm over the last axis, which is `width` elements."""

    kind: Literal["rms", "layer"]
    weight: Ref
    bias: Ref | None
    epsilon: float
    width: int


@dataclass(frozen=True, eq=False)
class Rotation:
    """Hold the rotation of a sample's positions: ``y[i] = cos[i] * x[i] + sin[i] * x[partner[i]]``.

    Shapes: partner [dim]; cos, sin [seq, dim]. An element that no position turns is its own partner.
    """

    partner: IndexArray
    cos: F64Array
    sin: F64Array

    def reordered(self, order: Sequence[int]) -> "Rotation":
        """Return the rotation of heads whose element i is stored as element ``order[i]``."""
        places = np.array(order)
        partner, cos, sin = np.empty_like(self.partner), np.empty_like(self.cos), np.empty_like(self.sin)
        partner[places] = places[self.partner]
        cos[:, places], sin[:, places] = self.cos, self.sin
        return Rotation(partner, cos, sin)


@dataclass(frozen=True)
class Heads:
    """Hold how queries, keys or values are made of a layer's input."""

    linear: Linear
    norm: Norm | None
    rotation: Rotation | None


@dataclass(frozen=True, eq=False)
class Attention:
    """Hold an attention; `mask` [seq, total] is true where a query may look."""

    heads: int
    kv_heads: int
    head_dim: int
    q: Heads
    k: Heads
    v: Heads
    output: Linear
    scale: float
    softcap: float
    mask: BoolArray


@dataclass(frozen=True)
class FeedForward:
    """Hold ``down(act(gate(x)) * up(x))``; without a gate ``down(act(up(x)))``."""

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str


@dataclass(frozen=True)
class Layer:
    """Hold a layer: norms before and after attention and feed-forward, None where there is none.

    If `parallel`, both read the layer's input; they share a norm if the feed-forward layer has none of
    its own. Each is multiplied by its scale before it is added.
    """

    parallel: bool
    attention_norm: Norm | None
    attention: Attention
    attention_post_norm: Norm | None
    attention_scale: float
    feed_forward_norm: Norm | None
    feed_forward: FeedForward
    feed_forward_post_norm: Norm | None
    feed_forward_scale: float


@dataclass(frozen=True)
class Decoder:
    """Hold a whole decoder; `embedding` [vocab, hidden] is scaled, `positions` are added to it.

    Logits are ``cap * tanh(scale / cap * head(x))``, without a cap (0) scaled only.
    """

    embedding: Ref
    embedding_scale: float
    positions: Ref | None
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear
    logits_scale: float
    logits_cap: float


Difference = tuple[str, object, object]


def differences(left: object, right: object, last: int, path: str = "") -> Iterator[Difference]:
    """Yield where two facts differ, with what each has there; weights are the same if both are there.

    `last` is the sample's last position: the f32 rounding of a frequency counts that often in its angle.
    """
    if isinstance(left, Ref) and isinstance(right, Ref):
        return
    if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, last, f"{path} {index}")
    elif is_dataclass(left) and type(left) is type(right):
        for field in fields(left):
            inner = f"{path}, {field.name}" if path else field.name
            yield from differences(getattr(left, field.name), getattr(right, field.name), last, inner)
    elif not _same(left, right, ABSOLUTE + ROUNDINGS * last):
        yield path, left, right


def _same(left: object, right: object, absolute: float) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.shape == right.shape and np.allclose(left, right, rtol=RELATIVE, atol=absolute)
    if isinstance(left, float) and isinstance(right, float):
        return bool(np.isclose(left, right, rtol=RELATIVE, atol=0))
    return type(left) is type(right) and left == right


def weights(facts: object, path: str = "") -> Iterator[tuple[str, Ref]]:
    """Yield all weights of facts by where they serve: ``layers.0.attention.q.linear.weight``."""
    if isinstance(facts, Ref):
        yield path, facts
    elif isinstance(facts, tuple):
        for index, part in enumerate(facts):
            yield from weights(part, f"{path}.{index}")
    elif is_dataclass(facts):
        for field in fields(facts):
            yield from weights(getattr(facts, field.name), f"{path}.{field.name}".lstrip("."))


def text(facts: object, indent: str = "") -> str:
    """Print facts one a line; of arrays the shape."""
    if isinstance(facts, tuple) and facts and is_dataclass(facts[0]):
        return "".join(f"{indent}{index}\n{text(part, indent + '  ')}" for index, part in enumerate(facts))
    if not is_dataclass(facts) or isinstance(facts, Ref):
        shown = f"{type(facts).__name__}{list(facts.shape)}" if isinstance(facts, np.ndarray) else facts
        return f"{indent}{shown}\n"
    lines: list[str] = []
    for field in fields(facts):
        value = getattr(facts, field.name)
        inner = text(value, indent + "  ")
        nested = inner.count("\n") > 1 or (isinstance(value, tuple) and bool(value))
        lines.append(f"{indent}{field.name}\n{inner}" if nested else f"{indent}{field.name} {inner.lstrip()}")
    return "".join(lines)
