"""Checkpoints that are quantized already: `quantization_config` names the method, the tensors give the codes.

Every method ends as `Grid` weights that keep the file's codes, with scales and zero points as exact f32
numbers, or, for 8-bit floats, as weights that are widened when they are read.
"""

from collections.abc import Callable, Mapping

from tokc.errors import ImportRefused
from tokc.importers.checkpoint import Arrays, Weight
from tokc.importers.quantized_floats import float8_weights
from tokc.importers.quantized_integers import awq_weights, compressed_weights, gptq_weights

Config = Mapping[str, object]
Reader = Callable[[Config, Arrays, str], dict[str, Weight]]

# `quant_method` -> what reads its tensors
METHODS: Mapping[str, Reader] = {
    "gptq": gptq_weights,
    "awq": awq_weights,
    "compressed-tensors": compressed_weights,
    "fp8": float8_weights,
    "fbgemm_fp8": float8_weights,
}
# What says how activations and the cache were quantized: tokc measures their range when it runs.
UNUSED = (
    *("input_scale", "activation_scale", "output_scale", "input_scale_ub", "input_zero_point", "act_scale"),
    *("output_zero_point", "input_global_scale", "k_scale", "v_scale", "q_scale", "prob_scale"),
)


def quantized_weights(config: Config, arrays: Arrays, origin: str) -> dict[str, Weight]:
    """Take the tensors of quantized layers out of `arrays`; return those layers' weights by name.

    `config` is a model's config.json; a model that states no quantization has no such layers.
    Raises: ImportRefused for a method that is not known, or tensors that do not fit it.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        raise ImportRefused(
            f"'quantization_config' is '{stated}', not an object",
            where=origin,
            hint="fetch config.json again",
        )
    method = str(stated.get("quant_method", ""))
    if method not in METHODS:
        raise ImportRefused(
            f"weights quantized by '{method}' are not supported; supported are {', '.join(METHODS)}",
            where=origin,
            hint="take the model's unquantized checkpoint, or one in GGUF",
        )
    weights = METHODS[method](stated, arrays, origin)
    for name in [name for name in arrays if name.rpartition(".")[2] in UNUSED]:
        arrays.pop(name)
    return weights


def empty_biases(weights: Mapping[str, Weight], arrays: Arrays) -> frozenset[str]:
    """Return the biases of quantized layers that are zero: quantizers store them where a layer has none."""
    biases = [f"{name.removesuffix('weight')}bias" for name in weights]
    return frozenset(name for name in biases if name in arrays and not arrays[name].any())
