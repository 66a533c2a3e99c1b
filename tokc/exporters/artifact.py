"""An artifact's weights and texts: what was built can be had back, without the model that it was built of.

Exact: packing moves codes and scales and changes none. What quantization had rounded stays so.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tokc.errors import TokcError
from tokc.exporters.weights import LAYERS, Model, apart
from tokc.importers.checkpoint import Dense, Grid, Weight, lazy
from tokc.importers.experts import stacked
from tokc.ir.program import Assets, ModelConfig
from tokc.runtime.artifact import Artifact
from tokc.runtime.safetensors import Tensors, map_file
from tokc.targets.cpu.isa import ISAS, Isa
from tokc.targets.cpu.kernels.linear import Linear
from tokc.targets.cpu.kernels.moe_linear import MoeLinear
from tokc.targets.cpu.kernels.quant_linear import QuantLinear
from tokc.targets.cpu.unpacking import kernel_of, unpack_linear, unpack_quant

SOURCE_CONFIG = "source_config.json"
WEIGHTS = "model.safetensors"
PADDED = ".bias.padded"

Kernel = QuantLinear | Linear | MoeLinear | None


def artifact_model(path: Path) -> Model:
    """Return what an artifact for CPUs was made of.

    Raises: ArtifactRefused if it is damaged; TokcError if it is for another kind of target.
    """
    artifact = Artifact.open(path)
    target = artifact.manifest.target
    if target.kind != "cpu" or target.device not in ISAS:
        raise TokcError(
            f"weights packed for '{target.kind}:{target.device}' cannot be exported; those for cpu can",
            where=str(path),
            hint="export the model that the artifact was built of",
        )
    if SOURCE_CONFIG not in artifact.manifest.files:
        raise TokcError(
            f"the artifact has no '{SOURCE_CONFIG}'",
            where=str(path),
            hint="build it with this version of tokc",
        )
    facts = json.loads((path / "config.json").read_text())
    config = ModelConfig(**{**facts, "eos_token_ids": tuple(facts["eos_token_ids"])})
    kernels = _kernels(json.loads((path / "plan.json").read_text()), ISAS[target.device])
    weights = {
        name: weight
        for stacked in _weights(map_file(path / WEIGHTS), kernels)
        for name, weight in apart(*stacked, config)
    }
    return Model(weights, config, _assets(path, artifact))


def _kernels(plan: Mapping[str, Any], isa: Isa) -> dict[str, Kernel]:
    """Return the kernel that reads each tensor of weights."""
    buffers, kernels = plan["buffers"], plan["kernels"]
    found: dict[str, Kernel] = {}
    for launch in plan["launches"]:
        kernel = kernel_of(kernels[launch["kernel"]], isa)
        for index, _ in launch["operands"]:
            if kernel is not None and buffers[index]["space"] == "weights":
                found.setdefault(buffers[index]["name"], kernel)
    return found


def _weights(tensors: Tensors, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, Weight]]:
    for name, data in tensors.items():
        if not name.startswith(LAYERS):
            continue
        kernel = kernels.get(name)
        if name.endswith(PADDED):
            assert isinstance(kernel, QuantLinear | Linear), f"no kernel reads '{name}'"
            yield name.removesuffix(".padded"), Dense(ir.Tensor(data[: kernel.n], dtype=ir.DataType.FLOAT))
        elif isinstance(kernel, MoeLinear):
            each = data.reshape(kernel.experts, kernel.expert_bytes)
            yield name, stacked([_unpacked(one, kernel.linear) for one in each])
        elif kernel is not None and data.dtype == np.uint8:
            yield name, _unpacked(data, kernel)
        else:
            yield name, Dense(ir.Tensor(data, dtype=ir.DataType.FLOAT))


def _unpacked(data: npt.NDArray[np.generic], kernel: QuantLinear | Linear) -> Weight:
    return _grid(data, kernel) if isinstance(kernel, QuantLinear) else _plain(data, kernel)


def _plain(data: npt.NDArray[np.generic], kernel: Linear) -> Dense:
    return Dense(lazy(lambda: unpack_linear(data, kernel), ir.DataType.FLOAT, (kernel.n, kernel.k)))


def _grid(data: npt.NDArray[np.generic], kernel: QuantLinear) -> Grid:
    wide = kernel.bits == 8
    shape, groups = (kernel.n, kernel.k), (kernel.n, kernel.blocks)

    def codes() -> npt.NDArray[np.generic]:
        found = unpack_quant(data, kernel).codes
        return found if wide else found.view(ml_dtypes.uint4)

    def offset() -> npt.NDArray[np.generic]:
        found = unpack_quant(data, kernel).offset
        assert found is not None, "an asymmetric grid has an offset"
        return found

    half = ir.DataType.FLOAT16
    return Grid(
        q=lazy(codes, ir.DataType.INT8 if wide else ir.DataType.UINT4, shape),
        scale=lazy(lambda: unpack_quant(data, kernel).scale, half, groups),
        offset=None if kernel.symmetric else lazy(offset, half, groups),
        zero_point=1 << kernel.bits - 1 if kernel.symmetric and not wide else 0,
        block_size=kernel.block,
    )


def _assets(path: Path, artifact: Artifact) -> Assets:
    def text(name: str) -> str | None:
        return (path / name).read_text(encoding="utf-8") if (path / name).is_file() else None

    return Assets(
        tokenizer_json=text("tokenizer.json"),
        chat_template=text("chat_template.jinja"),
        special_tokens=dict(artifact.manifest.model.special_tokens),
        generation_config=json.loads(text("generation_config.json") or "{}"),
        licence=artifact.manifest.licence,
        provenance=dict(artifact.manifest.provenance),
        source_config=json.loads(text(SOURCE_CONFIG) or "{}"),
    )
