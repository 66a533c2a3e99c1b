"""One step of a model as data: its nodes, weights and cache, without a line of JAX.

The process that builds describes the step; a process of its own, which alone imports JAX and libtpu, makes
the function from the description, exports it and compiles it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Attribute = int | float | str | bool | list[int]
Axes = tuple[str | None, ...]

MODEL_AXIS = "tp"  # the mesh axis over which heads, columns and vocabulary are cut
LANES = 128  # of a TPU's vector registers: what a head's last axis is padded to


@dataclass(frozen=True)
class Node:
    """One op: inputs and outputs by name, an absent optional input is None."""

    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Weight:
    """One weight as the function takes it; `dtype` in JAX's words.

    int4 and uint4 lie two a byte in the file: of the last axis, the first half is in the low four bits and
    the second in the high ones, so that unpacking moves whole vectors.
    `axes` names the mesh axis that cuts each dimension, None where it is whole on every chip.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: Axes

    @property
    def nbytes(self) -> int:
        """Return its size on all chips together, counted once."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count // 2 if self.dtype in {"int4", "uint4"} else count * ITEM_BYTES[self.dtype]


ITEM_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Cache:
    """The paged cache of every layer, a buffer [pages + 1, page, 2 * kv_heads, dim] each.

    Keys and values of a head lie side by side; the last page takes what padding tokens write. `kv_heads` and
    `dim` may be padded. int8 adds scales f32 [pages + 1, page, 2 * kv_heads]. `blocks` is the most pages of
    one sequence; `axes` cuts the heads or is all None.
    """

    layers: int
    page: int
    kv_heads: int
    dim: int
    dtype: str
    blocks: int
    axes: Axes

    @property
    def page_bytes(self) -> int:
        """Return what one page takes in all layers, on all chips together."""
        row = self.dim * ITEM_BYTES[self.dtype] + (4 if self.dtype == "int8" else 0)
        return self.layers * self.page * 2 * self.kv_heads * row


@dataclass(frozen=True)
class Bucket:
    """The size of one compiled step: at most so many tokens, and so many sequences and rows of logits."""

    tokens: int
    seqs: int

    @property
    def name(self) -> str:
        """Return its name, which files carry."""
        return f"step_{self.tokens}x{self.seqs}"


@dataclass(frozen=True)
class Step:
    """A whole step. `compute` is the dtype of products, which are summed in float32.

    `attention` and `products` name the rows that attend and that multiply by weights on a grid: "xla" or
    "pallas". `chips` cut the model between them.
    """

    platform: str
    compute: str
    attention: str
    products: str
    chips: int
    vocab: int
    head_dim: int
    cache: Cache
    nodes: tuple[Node, ...]
    weights: tuple[Weight, ...]
    buckets: tuple[Bucket, ...]
    logits: str

    def to_json(self) -> dict[str, Any]:
        """Return what `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Step":
        """Read what `to_json` gave, perhaps through JSON."""
        cache = value["cache"]
        return cls(
            **{
                **value,
                "cache": Cache(**{**cache, "axes": tuple(cache["axes"])}),
                "nodes": tuple(
                    Node(n["op"], tuple(n["inputs"]), tuple(n["outputs"]), n["attributes"])
                    for n in value["nodes"]
                ),
                "weights": tuple(
                    Weight(w["name"], w["dtype"], tuple(w["shape"]), tuple(w["axes"]))
                    for w in value["weights"]
                ),
                "buckets": tuple(Bucket(b["tokens"], b["seqs"]) for b in value["buckets"]),
            }
        )
