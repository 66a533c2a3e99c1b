"""A language model as a program: an ONNX graph and the facts that a graph lacks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.ir.costs import constant_bytes

Form = Literal["batch", "ragged"]
KvDtype = Literal["f32", "f16", "int8", "int4"]
DraftKind = Literal["eagle", "medusa"]

OPSET = 23
IR_VERSION = 11


@dataclass(frozen=True)
class ModelConfig:
    """State the architecture of a decoder-only model; sizes in elements, `context` in tokens."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    norm_epsilon: float
    tied_embedding: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Assets:
    """Hold what travels with the weights: tokenizer, chat template, generation defaults, origin.

    `tokenizer_json` is the text of a Hugging Face `tokenizer.json`; `special_tokens` maps the names that
    chat templates use (`bos_token`, `eos_token`, ...) to their text; `provenance` names source files and
    their sha256; `source_config` is the Hugging Face configuration that the decoder was built by;
    `calibration` says what its weights were fitted to, where they were fitted to a text.
    """

    tokenizer_json: str | None = None
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    generation_config: Mapping[str, object] = field(default_factory=dict)
    licence: str | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    source_config: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KvLayout:
    """State how the paged cache is laid out; `page` in tokens.

    Keys are [pages, kv_heads, dim, page], values [pages, kv_heads, page, dim]; int8 adds one f32 scale a
    token and head, [pages, kv_heads, page]. int4 adds one in f16 and holds two codes a byte, elements d and
    d + dim / 2 of a head: u8 [pages, kv_heads, dim / 2, page] and u8 [pages, kv_heads, page, dim / 2].
    """

    page: int
    dtype: KvDtype

    @property
    def scaled(self) -> bool:
        """Return whether keys and values are codes with a scale a token and head."""
        return self.dtype in {"int8", "int4"}


@dataclass(frozen=True)
class Program:
    """Hold one stage of a model between import and lowering.

    `form` is "batch" as imported ([batch, seq] with a dense cache) or "ragged" (one axis [tokens] over all
    sequences, paged cache); `kv` is set in ragged form only. `draft` drafts tokens for this one to verify.
    """

    model: ir.Model
    config: ModelConfig
    assets: Assets = field(default_factory=Assets)
    form: Form = "batch"
    kv: KvLayout | None = None
    draft: "Draft | None" = None

    @property
    def graph(self) -> ir.Graph:
        """Return the main graph."""
        return self.model.graph

    def copy(self) -> "Program":
        """Return a program with its own graph; weights are shared by reference."""
        return replace(self, model=self.model.clone())

    def replace(self, **changes: object) -> "Program":
        """Return a program with the named fields exchanged."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def weight_bytes(self, besides: "Program | None" = None) -> int:
        """Return the bytes of all initializers; packed types count packed, narrow codes by their width.

        Those that `besides` has by the same name are left out.
        """
        shared = {} if besides is None else besides.graph.initializers
        own = (value for name, value in self.graph.initializers.items() if name not in shared)
        return int(sum(constant_bytes(value) for value in own if value.const_value is not None))


@dataclass(frozen=True)
class Draft:
    """Hold what drafts tokens from the features of another program, whose embedding and head it shares.

    An *eagle* reads ``input_ids``, ``features`` and its own cache of one layer, and makes ``logits`` and the
    ``features.out`` that it goes on from; a *medusa* reads ``features`` and makes logits of the `heads` next
    tokens, [.., heads, vocabulary]. Logits are those of the ids in `vocabulary` i32[draft vocabulary], of all
    where it is None. `acceptance` is the share of drafted tokens that held on held-out text, and `trained_on`
    the sha256 of the backbone's packed weights then; None where that is not known. `file` and `file_sha256`
    name the heads that it was made of.
    """

    kind: DraftKind
    program: Program
    vocabulary: npt.NDArray[np.int32] | None = None
    heads: int = 1
    acceptance: float | None = None
    trained_on: str | None = None
    file: str = ""
    file_sha256: str = ""

    def running(self, program: Program) -> "Draft":
        """Return the draft with another program."""
        return replace(self, program=program)

    @property
    def logits(self) -> int:
        """Return the size of the vocabulary that it drafts from."""
        return self.program.config.vocab if self.vocabulary is None else len(self.vocabulary)
