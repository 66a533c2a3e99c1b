"""Quantizes a model as llm-compressor does: `rtn`, `gptq` or `awq`; runs in its environment."""

import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier

from bench.peers.library_folder import Task


def recipe(task: Task) -> list[object]:
    """Return the modifiers of a method."""
    weights = {
        "num_bits": task.bits,
        "type": "int",
        "symmetric": task.symmetric,
        "strategy": "group",
        "group_size": task.group,
    }
    options = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if task.method == "gptq":
        return [GPTQModifier(**options)]
    return [*([AWQModifier()] if task.method == "awq" else []), QuantizationModifier(**options)]


def quantize(task: Task) -> None:
    """Write the model compressed, as the library does."""
    model = transformers.AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(task.source)
    windows = task.windows()
    oneshot(
        model=model,
        tokenizer=tokenizer,
        recipe=recipe(task),
        dataset=Dataset.from_list(windows),
        max_seq_length=len(windows[0]["input_ids"]),
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(task.destination, save_compressed=True)
    tokenizer.save_pretrained(task.destination)


if __name__ == "__main__":
    quantize(Task.of_arguments())
