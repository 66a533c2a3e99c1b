"""Files of random heads for tiny models, and what they compute, in numpy after the papers' code."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
LAYER = "layers.0."


def eagle_heads(
    hidden: int,
    heads: tuple[int, int],
    *,
    intermediate: int = 96,
    norm: bool = False,
    bias: bool = True,
    vocabulary: npt.NDArray[Any] | None = None,
    seed: int = 3,
) -> Arrays:
    """Return an EAGLE-1's tensors; `heads` are the rows of queries and of keys."""
    queries, keys = heads
    shapes = {
        "fc.weight": (hidden, 2 * hidden),
        f"{LAYER}self_attn.q_proj.weight": (queries, hidden),
        f"{LAYER}self_attn.k_proj.weight": (keys, hidden),
        f"{LAYER}self_attn.v_proj.weight": (keys, hidden),
        f"{LAYER}self_attn.o_proj.weight": (hidden, queries),
        f"{LAYER}mlp.gate_proj.weight": (intermediate, hidden),
        f"{LAYER}mlp.up_proj.weight": (intermediate, hidden),
        f"{LAYER}mlp.down_proj.weight": (hidden, intermediate),
    }
    rng = np.random.default_rng(seed)
    made: Arrays = {name: _random(rng, shape) for name, shape in shapes.items()}
    made[f"{LAYER}post_attention_layernorm.weight"] = _around_one(rng, hidden)
    if norm:
        made[f"{LAYER}input_layernorm.weight"] = _around_one(rng, hidden)
    if bias:
        made["fc.bias"] = _random(rng, (hidden,))
    return made | _own_ids(vocabulary)


def medusa_heads(
    hidden: int,
    count: int,
    *,
    own: int | None = None,
    vocabulary: npt.NDArray[Any] | None = None,
    blocks: int = 1,
    seed: int = 4,
) -> Arrays:
    """Return Medusa-1's tensors; with `own` each head projects to so many tokens by itself."""
    rng = np.random.default_rng(seed)
    made: Arrays = {}
    for head in range(count):
        for block in range(blocks):
            made[f"{head}.{block}.linear.weight"] = _random(rng, (hidden, hidden))
            made[f"{head}.{block}.linear.bias"] = _random(rng, (hidden,))
        if own is not None:
            made[f"{head}.{blocks}.weight"] = _random(rng, (own, hidden))
    return made | _own_ids(vocabulary)


def saved(tensors: Arrays, path: Path, **metadata: str) -> Path:
    """Write a file of heads and return its path."""
    save_file(tensors, path, metadata=metadata or None)
    return path


def eagle_logits(
    tensors: Arrays, table: F32, head: F32, ids: npt.NDArray[Any], features: F32, *, dim: int, epsilon: float
) -> tuple[F32, F32]:
    """Return logits [tokens, vocabulary] and next features [tokens, hidden] of one sequence.

    Source: model/cnets.py of EAGLE: ``fc(cat(embedding, feature))``, a Llama layer without its first norm.
    """
    w = {name.removeprefix(LAYER): array for name, array in tensors.items()}
    x = np.concatenate([table[ids], features], axis=-1) @ w["fc.weight"].T + w.get("fc.bias", 0.0)
    h = _norm(x, w["input_layernorm.weight"], epsilon) if "input_layernorm.weight" in w else x
    x = x + _attention(h, w, dim) @ w["self_attn.o_proj.weight"].T
    h = _norm(x, w["post_attention_layernorm.weight"], epsilon)
    gate = h @ w["mlp.gate_proj.weight"].T
    mixed = gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj.weight"].T)
    x = x + mixed @ w["mlp.down_proj.weight"].T
    return x @ _rows(tensors, head).T, x


def medusa_logits(tensors: Arrays, head: F32, features: F32) -> F32:
    """Return logits [tokens, heads, vocabulary]; source: medusa/model/medusa_model.py, ResBlock."""
    found = []
    for index in range(sum(name.endswith(".0.linear.bias") for name in tensors)):
        x, block = features, 0
        while f"{index}.{block}.linear.weight" in tensors:
            y = x @ tensors[f"{index}.{block}.linear.weight"].T + tensors[f"{index}.{block}.linear.bias"]
            x, block = x + y / (1 + np.exp(-y)), block + 1
        found.append(x @ tensors.get(f"{index}.{block}.weight", _rows(tensors, head)).T)
    return np.stack(found, axis=1)


def _rows(tensors: Arrays, head: F32) -> F32:
    if "d2t" not in tensors:
        return head
    return np.asarray(head[tensors["d2t"] + np.arange(len(tensors["d2t"]))])


def _attention(h: F32, w: Arrays, dim: int) -> F32:
    tokens = len(h)
    q, k, v = (h @ w[f"self_attn.{part}_proj.weight"].T for part in "qkv")
    q, k, v = (one.reshape(tokens, -1, dim).transpose(1, 0, 2) for one in (q, k, v))
    angles = np.arange(tokens)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)
    q, k = (_rotated(one, np.cos(angles), np.sin(angles)) for one in (q, k))
    k, v = (np.repeat(one, len(q) // len(one), axis=0) for one in (k, v))
    scores = q @ k.transpose(0, 2, 1) * dim**-0.5
    scores = np.where(np.tril(np.ones((tokens, tokens), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray((weights @ v).transpose(1, 0, 2).reshape(tokens, -1))


def _rotated(x: F32, cos: F32, sin: F32) -> F32:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _norm(x: F32, weight: F32, epsilon: float) -> F32:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (rng.normal(size=shape) * shape[-1] ** -0.5).astype(np.float32)


def _around_one(rng: np.random.Generator, width: int) -> F32:
    return (1 + 0.2 * rng.normal(size=width)).astype(np.float32)


def _own_ids(vocabulary: npt.NDArray[Any] | None) -> Arrays:
    return {} if vocabulary is None else {"d2t": vocabulary.astype(np.int64) - np.arange(len(vocabulary))}
