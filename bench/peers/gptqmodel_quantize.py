"""Quantizes a model as GPTQModel does, all else its defaults; runs in its environment.

Two threads are asked for: version 7.6.0 takes one on machines of two cores and then fails to start two.
"""

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import GPTQModel, QuantizeConfig

from bench.peers.library_folder import Task


def quantize(task: Task) -> None:
    """Write the model as the library saves it."""
    assert task.method == "gptq", f"'{task.method}' is no method of this row"
    config = QuantizeConfig(
        bits=task.bits,
        group_size=task.group,
        sym=task.symmetric,
        desc_act=False,
        device="cpu",
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(task.source), config, dtype=torch.float32)
    model.quantize(task.windows(), batch_size=1)
    model.save(str(task.destination))


if __name__ == "__main__":
    quantize(Task.of_arguments())
