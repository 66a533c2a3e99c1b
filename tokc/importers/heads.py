"""Trained heads: the weights of a draft in a safetensors file, and what the file says of itself.

Tensors have the names of published checkpoints: those of EAGLE-1 (Li et al. 2024, arXiv:2401.15077) and of
Medusa-1 (Cai et al. 2024, arXiv:2401.10774). `d2t` is EAGLE-3's: entry i is the token of the draft's id i,
less i.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import Arrays, Weight, file_arrays, file_metadata, plain_weights
from tokc.importers.layouts import is_buffer
from tokc.ir.program import DraftKind, Program
from tokc.model_files import sha256

FC, OWN_IDS = "fc.weight", "d2t"
# What published files hold beside the draft: copies of the backbone's own.
SPARE = frozenset({"embed_tokens.weight", "lm_head.weight", "t2d"})
MEDUSA_FIRST = "0.0.linear.weight"
_MEDUSA = re.compile(r"(?P<head>\d+)\.(?P<block>\d+)\.(linear\.weight|linear\.bias|weight)")


@dataclass(frozen=True)
class Heads:
    """Hold a file of heads: `vocabulary` are the token ids it drafts from, None for all; `metadata` is text.

    `heads` is how many tokens are drafted at once, 1 but for medusa, whose heads have `blocks` each.
    """

    kind: DraftKind
    path: Path
    weights: Mapping[str, Weight]
    vocabulary: npt.NDArray[np.int32] | None
    heads: int
    blocks: int
    metadata: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Return the hash of the file."""
        return sha256(self.path)

    @property
    def acceptance(self) -> float | None:
        """Return the share of drafted tokens that held on held-out text, None where it is not stated."""
        try:
            return float(self.metadata["held_out_acceptance"])
        except (KeyError, ValueError):
            return None


def load_heads(path: Path) -> Heads:
    """Read a file of heads, or the one in a folder.

    Raises: ImportRefused if there is none, it is damaged, or its tensors are no draft that tokc knows.
    """
    file = _file(path)
    arrays = {name: array for name, array in file_arrays(file) if not _passed_over(name)}
    ids = arrays.pop(OWN_IDS, None)
    kind: DraftKind | None = "eagle" if FC in arrays else "medusa" if MEDUSA_FIRST in arrays else None
    if kind is None:
        raise ImportRefused(
            f"'{file.name}' holds neither '{FC}' (eagle) nor '{MEDUSA_FIRST}' (medusa)",
            where=str(file),
            hint="give the .safetensors of `tokc train-heads`, or of a published EAGLE-1 or Medusa-1",
        )
    count, blocks = _sizes(arrays, file) if kind == "medusa" else (1, 0)
    return Heads(
        kind=kind,
        path=file,
        weights=plain_weights(arrays, str(file)),
        vocabulary=None if ids is None else _vocabulary(ids, file),
        heads=count,
        blocks=blocks,
        metadata=file_metadata(file),
    )


def require_fit(heads: Heads, backbone: Program) -> None:
    """Refuse heads of another backbone.

    Raises: ImportRefused naming the hidden size, the vocabulary or the tokenizer that differs.
    """
    config, stated = backbone.config, heads.metadata
    first = heads.weights[FC if heads.kind == "eagle" else MEDUSA_FIRST]
    last = -1 if heads.vocabulary is None else int(heads.vocabulary[-1])
    projection = f".{heads.blocks}.weight"
    own = next((w.shape[0] for name, w in heads.weights.items() if name.endswith(projection)), None)
    vocab = stated.get("vocab", str(config.vocab))
    tokenizer = backbone.assets.tokenizer_json
    found = None
    if first.shape[0] != config.hidden:
        found = f"the hidden size is {first.shape[0]} there, {config.hidden} here"
    elif vocab != str(config.vocab):
        found = f"the vocabulary has {vocab} tokens there, {config.vocab} here"
    elif last >= config.vocab:
        found = f"they draft token {last}, the vocabulary here has {config.vocab}"
    elif heads.kind == "medusa" and heads.vocabulary is None and own not in {None, config.vocab}:
        found = f"the vocabulary has {own} tokens there, {config.vocab} here"
    elif tokenizer is not None and "tokenizer_sha256" in stated:
        here = hashlib.sha256(tokenizer.encode()).hexdigest()
        if stated["tokenizer_sha256"] != here:
            found = f"the tokenizer is {stated['tokenizer_sha256'][:12]} there, {here[:12]} here (sha256)"
    if found is not None:
        raise ImportRefused(
            f"the heads are of another backbone: {found}",
            where=str(heads.path),
            hint="heads fit the model that they were trained on: `tokc train-heads MODEL`",
        )


def _passed_over(name: str) -> bool:
    return name in SPARE or is_buffer(name)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    problem = f"there is no file or folder '{path}'"
    if path.is_dir():
        problem = f"the folder '{path}' holds {len(found)} .safetensors files, not one"
    raise ImportRefused(problem, hint="give the .safetensors of heads, as `tokc train-heads` writes it")


def _vocabulary(ids: npt.NDArray[np.generic], file: Path) -> npt.NDArray[np.int32]:
    """Return the token of each of the draft's ids."""
    offsets = np.asarray(ids)
    if offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer) or not offsets.size:
        raise ImportRefused(
            f"'{OWN_IDS}' is {offsets.dtype}{list(offsets.shape)}, not i64[n]", where=str(file)
        )
    tokens = offsets.astype(np.int64) + np.arange(offsets.size)
    if (np.diff(tokens) <= 0).any() or tokens[0] < 0 or tokens[-1] >= 1 << 31:
        raise ImportRefused(f"'{OWN_IDS}' does not list token ids in ascending order", where=str(file))
    return tokens.astype(np.int32)


def _sizes(arrays: Arrays, file: Path) -> tuple[int, int]:
    """Return how many heads there are, and how many residual blocks each has; a projection may follow."""
    matches = {name: _MEDUSA.fullmatch(name) for name in arrays}
    found = {name: match for name, match in matches.items() if match is not None}
    blocks = 1 + max(int(match["block"]) for match in found.values() if "linear" in match[0])
    odd = [name for name, match in found.items() if "linear" not in name and int(match["block"]) != blocks]
    odd += arrays.keys() - found.keys()
    if odd:
        raise ImportRefused(f"tensor '{min(odd)}' has no place in Medusa-1's heads", where=str(file))
    return 1 + max(int(match["head"]) for match in found.values()), blocks
