"""Quantizes a model as GPTQModel does: `gptq` or `rtn`, all else its defaults; runs in its environment."""

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

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
    model = GPTQModel.load(str(task.source), config, backend=BACKEND.AUTO)
    model.quantize(task.windows(), batch_size=1)
    model.save(str(task.destination))


if __name__ == "__main__":
    quantize(Task.of_arguments())
