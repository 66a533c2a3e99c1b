"""LoRA adapters as peft writes them, merged into a model's weights when those are read.

An adapter's product ``scale * B @ A`` is added to the weight of each layer that it changes, in f32; a weight
on a grid is dequantized for that. Several adapters are merged one after another.

Source: Hu et al. 2021, arXiv:2106.09685; rank-stabilized scale arXiv:2312.03732; DoRA arXiv:2402.09353; peft.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import (
    Dense,
    Weight,
    dequantized,
    file_arrays,
    lazy,
    plain_weights,
    read_json,
)
from tokc.model_files import sha256

F32 = npt.NDArray[np.float32]
Config = Mapping[str, object]
Rename = Callable[[str], str]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# What a file calls an adapter's parts, the module before it -> what they are
PARTS = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.default)?(\.weight)?$"
)
UNSUPPORTED = ("lora_bias", "trainable_token_indices", "use_qalora", "arrow_config", "target_parameters")


@dataclass(frozen=True)
class Change:
    """State what an adapter does to one weight: ``(w + scale * B @ A)``, rescaled by rows if `magnitude`.

    Shapes: a [r, in], b [out, r], magnitude [out]; `turned` weights are stored [in, out].
    """

    a: F32
    b: F32
    scale: float
    turned: bool = False
    magnitude: F32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape of the weight that it fits."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.turned else shape

    def applied(self, w: F32) -> F32:
        """Return the changed weight."""
        delta = np.float32(self.scale) * (self.b.astype(np.float32) @ self.a.astype(np.float32))
        changed: F32 = w + (delta.T if self.turned else delta)
        if self.magnitude is None:
            return changed
        axis = 0 if self.turned else 1
        ratio = self.magnitude.astype(np.float32).reshape(-1) / np.linalg.norm(changed, axis=axis)
        rescaled: F32 = changed * np.expand_dims(ratio.astype(np.float32), axis)
        return rescaled


@dataclass(frozen=True)
class Adapter:
    """Hold an adapter: its changes and the weights that it brings whole, by the weights' names."""

    path: Path
    changes: Mapping[str, Change]
    whole: Mapping[str, Weight] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, rename: Rename) -> "Adapter":
        """Read an adapter's folder; `rename` turns a tensor's name into the model's.

        Raises: ImportRefused if it is no LoRA adapter, is damaged, or uses what is not supported.
        """
        config = _config(path)
        if not (path / TENSORS).is_file():
            raise ImportRefused(
                f"the adapter has no '{TENSORS}'",
                where=str(path),
                hint="save it with safe_serialization=True",
            )
        parts: dict[str, dict[str, npt.NDArray[np.generic]]] = {}
        rest: dict[str, npt.NDArray[np.generic]] = {}
        for key, array in file_arrays(path / TENSORS):
            found = PARTS.match(key.removeprefix(PREFIX))
            if found is None:
                rest[rename(key.removeprefix(PREFIX).replace(".base_layer.", "."))] = array
            else:
                parts.setdefault(found["module"], {})[found["part"]] = array
        changes = {
            rename(f"{module}.weight"): _change(config, module, given, path)
            for module, given in parts.items()
        }
        if not changes and not rest:
            raise ImportRefused("the adapter changes nothing", where=str(path), hint="fetch its files again")
        return cls(path, changes, plain_weights(rest, str(path)))

    def merged(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """Return a model's weights with this adapter's changes.

        Raises: ImportRefused if the adapter was made for another model.
        """
        result = dict(weights)
        for name, weight in self.whole.items():
            self._fits(name, weight.shape, weights)
            result[name] = weight
        for name, change in self.changes.items():
            self._fits(name, change.shape, weights)
            result[name] = _changed(result[name], change)
        return result

    def _fits(self, name: str, shape: tuple[int, ...], weights: Mapping[str, Weight]) -> None:
        base = weights.get(name)
        if base is None:
            problem = f"the adapter changes '{name}', which the model does not have"
        elif base.shape != shape:
            problem = (
                f"the adapter changes '{name}' of shape {list(shape)}, the model's is {list(base.shape)}"
            )
        else:
            return
        raise ImportRefused(
            problem, where=str(self.path), hint="take the model that the adapter was made for"
        )


def merge_adapters(
    weights: Mapping[str, Weight], adapters: Sequence[Path], rename: Rename = str
) -> dict[str, Weight]:
    """Return a model's weights with the adapters in these folders merged in order.

    Raises: ImportRefused if one is no LoRA adapter or does not fit.
    """
    merged = dict(weights)
    for path in adapters:
        merged = Adapter.read(path, rename).merged(merged)
    return merged


def adapter_hashes(adapters: Sequence[Path]) -> dict[str, str]:
    """Return the sha256 of the adapters' files, named by their place in the order and their folder."""
    return {
        f"lora {index}: {path.resolve().name}/{file}": sha256(path / file)
        for index, path in enumerate(adapters, 1)
        for file in (CONFIG, TENSORS)
    }


def _config(path: Path) -> Config:
    if not (path / CONFIG).is_file():
        raise ImportRefused(
            f"'{path}' is not an adapter: it has no '{CONFIG}'",
            where=str(path),
            hint="give the folder that peft saved",
        )
    config = read_json(path / CONFIG)
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise ImportRefused(
            f"an adapter of type '{kind}' cannot be merged; supported is LORA",
            where=str(path),
            hint="merge it with peft, and build the model that it saves",
        )
    for key in UNSUPPORTED:
        if config.get(key):
            raise ImportRefused(
                f"'{key}' is {config[key]}, which is not supported",
                where=str(path),
                hint="merge the adapter with peft, and build the model that it saves",
            )
    return config


def _change(config: Config, module: str, given: Mapping[str, npt.NDArray[np.generic]], path: Path) -> Change:
    """Return what an adapter does to a module."""
    embedding = "lora_embedding_A" in given or "lora_embedding_B" in given
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [name for name in names if name not in given]
    if missing:
        raise ImportRefused(
            f"the adapter's tensor '{module}.{missing[0]}' is missing", where=str(path), hint="fetch it again"
        )
    a, b = (np.asarray(given[name]) for name in names)
    rank, alpha = _of(config, "rank_pattern", module, "r"), _of(config, "alpha_pattern", module, "lora_alpha")
    if a.shape[0] != b.shape[1] or a.shape[0] != rank:
        raise ImportRefused(
            f"the rank for '{module}' is {rank:g}, its tensors are {list(a.shape)}, {list(b.shape)}",
            where=str(path),
            hint=f"'{CONFIG}' and '{TENSORS}' are of different adapters; fetch both again",
        )
    magnitude = given.get("lora_magnitude_vector")
    return Change(
        a.astype(np.float32),
        b.astype(np.float32),
        alpha / (rank**0.5 if config.get("use_rslora") else rank),
        turned=embedding or bool(config.get("fan_in_fan_out")),
        magnitude=None if magnitude is None else np.asarray(magnitude).astype(np.float32),
    )


def _of(config: Config, patterns: str, module: str, key: str) -> float:
    """Return a module's own number, or the one for all."""
    stated = config.get(patterns)
    for pattern, value in stated.items() if isinstance(stated, Mapping) else ():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ImportRefused(
            f"'{key}' of the adapter is '{value}', not a positive number", hint="fetch it again"
        )
    return float(value)


def _changed(weight: Weight, change: Change) -> Dense:
    return Dense(lazy(lambda: change.applied(dequantized(weight)), ir.DataType.FLOAT, weight.shape))
