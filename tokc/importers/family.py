"""What a row of the table of families states, and the rules that read a configuration's layers.

A row says how a family's decoder differs from Llama's. The values of a configuration (sizes, rotations,
windows) are read by `architecture.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tokc.errors import ImportRefused
from tokc.importers.expert_keys import ExpertKeys

Activation = Literal["silu", "gelu_tanh", "gelu"]
Norm = Literal["rms", "layer"]
NormPlaces = Literal["before", "around", "after"]
Fused = Literal["apart", "stacked", "interleaved"]
Config = Mapping[str, object]
WindowRule = Callable[[Config, int], tuple[int, ...]]
RotationRule = Callable[[Config, int], tuple[bool, ...]]

SLIDING = "sliding_attention"
LARGEST = 1e15  # nothing that a configuration states is larger


def _listed(config: Config, layers: int) -> tuple[int, ...] | None:
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return None
    window = integer(config, "sliding_window", 0)
    _require_each("layer_types", len(kinds), layers)
    return tuple(window if kind == SLIDING else 0 for kind in kinds)


def _require_each(key: str, count: int, layers: int) -> None:
    if count != layers:
        raise ImportRefused(f"'{key}' lists {count} layers of {layers}", hint="correct config.json")


def no_windows(_: Config, layers: int) -> tuple[int, ...]:
    """Let every layer attend to everything before it."""
    return (0,) * layers


def same_window(config: Config, layers: int) -> tuple[int, ...]:
    """Give every layer the configuration's window, if there is one (Mistral)."""
    return (integer(config, "sliding_window", 0),) * layers


def late_windows(config: Config, layers: int) -> tuple[int, ...]:
    """Give the layers from `max_window_layers` on the window, if it is switched on (Qwen)."""
    if not config.get("use_sliding_window", False):
        return no_windows(config, layers)
    window, first = integer(config, "sliding_window", 0), integer(config, "max_window_layers", 28)
    return _listed(config, layers) or tuple(window if layer >= first else 0 for layer in range(layers))


def interleaved_windows(config: Config, layers: int) -> tuple[int, ...]:
    """Leave every sixth layer without a window (Gemma 3)."""
    window, every = integer(config, "sliding_window", 4096), integer(config, "sliding_window_pattern", 6)
    return _listed(config, layers) or tuple(
        0 if (layer + 1) % every == 0 else window for layer in range(layers)
    )


def alternating_windows(config: Config, layers: int) -> tuple[int, ...]:
    """Leave every second layer without a window (Gemma 2)."""
    window = integer(config, "sliding_window", 4096)
    return _listed(config, layers) or tuple(0 if layer % 2 else window for layer in range(layers))


def all_rotated(_: Config, layers: int) -> tuple[bool, ...]:
    """Rotate the queries and keys of every layer."""
    return (True,) * layers


def none_rotated(_: Config, layers: int) -> tuple[bool, ...]:
    """Rotate no layer: positions are learned and added to the embedding (GPT-2)."""
    return (False,) * layers


def most_rotated(config: Config, layers: int) -> tuple[bool, ...]:
    """Leave out the layers whose entry in `no_rope_layers` is 0, by default every fourth (SmolLM3)."""
    listed, every = config.get("no_rope_layers"), integer(config, "no_rope_layer_interval", 4)
    if not isinstance(listed, list):
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    _require_each("no_rope_layers", len(listed), layers)
    return tuple(bool(rotated) for rotated in listed)


def as_stated(config: Config) -> Config:
    """Return what a configuration states under other names than Llama's: nothing."""
    del config
    return {}


@dataclass(frozen=True)
class Family:
    """State how a family's decoder differs from Llama's, and how its checkpoints name and lay out weights.

    `keys` are the configuration's own names with Llama's, and `settings` what else it implies under those.
    `tensors` are parts of a checkpoint's names, of whole words, with what Llama has in their place;
    `fused_qkv` says how its qkv_proj stacks queries, keys and values (head by head if interleaved),
    `fused_gate_up` that it has a gate_up_proj, `transposed` that linear weights are [in, out].
    `norm_offset` is added to norm weights of Hugging Face files (GGUF files have it added); `norm_places`
    says whether a layer norms what a sublayer reads, what it makes, or both. `qk_norm` norms each head of q
    and k, `wide_qk_norm` all heads together.
    `rotary_share` is the part of a head that is rotated where the configuration is silent.
    `attention_scalar` names the value whose inverse square root scales the scores, the head's width if None.
    `scaled` and `softcapped` say that the configuration's multipliers and caps are heeded; `refused` names
    settings that must be off. `experts` is how it names what it says of its experts, None where it has none.
    `permuted_gguf` says that GGUF files store the rows of q and k in the order of interleaved rotation,
    `gguf_silent` what they mean without saying it.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    gguf: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    settings: Callable[[Config], Config] = as_stated
    tensors: tuple[tuple[str, str], ...] = ()
    fused_qkv: Fused = "apart"
    fused_gate_up: bool = False
    transposed: bool = False
    activation: Activation = "silu"
    gated: bool = True
    norm: Norm = "rms"
    norm_places: NormPlaces = "before"
    norm_offset: float = 0.0
    shared_norm: bool = False
    qk_norm: bool = False
    wide_qk_norm: bool = False
    qkv_bias: bool = False
    scaled_embedding: bool = False
    rotations: RotationRule = all_rotated
    rotary_share: float = 1.0
    local_rope_theta: float | None = None
    attention_scalar: str | None = None
    scaled: bool = False
    softcapped: bool = False
    windows: WindowRule = no_windows
    defaults: Config = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    experts: ExpertKeys | None = None
    permuted_gguf: bool = False
    gguf_silent: Config = field(default_factory=dict)

    def as_llama(self, config: Config) -> Config:
        """Return a configuration with its values under Llama's names, too."""
        named = {ours: config[own] for own, ours in self.keys.items() if config.get(own) is not None}
        both = {**config, **named}
        return {**both, **self.settings(both)}

    def as_own(self, config: Config) -> dict[str, object]:
        """Return a configuration under Llama's names under the family's own."""
        own = {ours: theirs for theirs, ours in self.keys.items()}
        return {own.get(key, key): value for key, value in config.items()}

    @property
    def sandwich_norms(self) -> bool:
        """Return whether a layer norms what a sublayer makes."""
        return self.norm_places != "before"

    @property
    def plain_layout(self) -> bool:
        """Return whether the program's weights have the names, shapes and rows of the family's own files."""
        return not self.tensors and self.fused_qkv == "apart" and self.rotary_share == 1.0


def integer(config: Config, key: str, default: int | None = None) -> int:
    """Return an integer of a configuration; null counts as absent.

    Raises: ImportRefused if it is absent without a default, or no integer.
    """
    value = number(config, key, default)
    if value != int(value):
        raise ImportRefused(f"'{key}' is {value}, not a whole number", hint="correct config.json")
    return int(value)


def number(config: Config, key: str, default: float | None = None) -> float:
    """Return a number of a configuration; null counts as absent.

    Raises: ImportRefused if it is absent without a default, or no finite number.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ImportRefused(f"the configuration has no '{key}'", hint="fetch config.json again")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ImportRefused(f"'{key}' is '{value}', not a number", hint="correct config.json")
    if not abs(value) <= LARGEST:
        raise ImportRefused(f"'{key}' is beyond all bounds, {value:.3g}", hint="correct config.json")
    return value
