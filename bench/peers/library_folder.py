"""What every library that quantizes is given, and a folder of codes; runs in the libraries' environments.

The arguments of each: the folder of a plain model, the folder to write, the method, the bits of a weight, the
columns of a group, `symmetric` or `offsets`, and a file of token ids i64[windows, tokens] to calibrate on.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True)
class Task:
    """What a library has to do."""

    source: Path
    destination: Path
    method: str
    bits: int
    group: int
    symmetric: bool
    ids: Path

    @classmethod
    def of_arguments(cls) -> "Task":
        """Read the command line."""
        source, destination, method, bits, group, grid, ids = sys.argv[1:]
        return cls(
            Path(source), Path(destination), method, int(bits), int(group), grid == "symmetric", Path(ids)
        )

    def windows(self) -> list[dict[str, list[int]]]:
        """Return the calibration windows as tokenizers give them."""
        return [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in np.load(self.ids)]


def write_pack_quantized(task: Task, arrays: Mapping[str, Any], modules: list[str]) -> None:
    """Write the folder of a model whose `modules` are in compressed-tensors' `pack-quantized`, symmetric."""
    from safetensors.torch import save_file

    task.destination.mkdir()
    save_file(dict(arrays), task.destination / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((task.source / "config.json").read_text())
    weights = {"num_bits": task.bits, "type": "int", "symmetric": True, "strategy": "group"}
    scheme = {"targets": modules, "weights": {**weights, "group_size": task.group}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    (task.destination / "config.json").write_text(json.dumps(config))
    for name in TEXTS:
        if (task.source / name).exists():
            shutil.copy(task.source / name, task.destination / name)
