"""Rounds a model as torchao does: `rtn`, or `hqq`, its search of the scales; runs in its environment."""

import torch
import transformers
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_
from torchao.quantization.quant_api import IntxChooseQParamsAlgorithm

from bench.peers.library_folder import Task, write_pack_quantized

ALGORITHMS = {
    "rtn": IntxChooseQParamsAlgorithm.AFFINE,
    "hqq": IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
}
WORD = 32  # bits


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes i8[out, in] around 0 as words i32[out, in * bits / 32], the first lowest."""
    each = (codes.to(torch.int64) + (1 << bits - 1)).reshape(codes.shape[0], -1, WORD // bits)
    words = (each << torch.arange(0, WORD, bits)).sum(-1)
    return torch.where(words >= 1 << WORD - 1, words - (1 << WORD), words).to(torch.int32)


def quantize(task: Task) -> None:
    """Write the model with its linear layers rounded; embedding and head stay."""
    assert task.symmetric, "torchao's grid with offsets has no form in a folder here"
    model = transformers.AutoModelForCausalLM.from_pretrained(task.source, dtype=torch.float32)
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{task.bits}"),
        granularity=PerGroup(task.group),
        mapping_type=MappingType.SYMMETRIC,
        intx_choose_qparams_algorithm=ALGORITHMS[task.method],
    )
    quantize_(
        model, config, filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and "layers" in name
    )
    arrays, modules = {}, []
    for name, weight in model.named_parameters():
        if hasattr(weight, "qdata"):
            assert not weight.zero_point.any(), "a symmetric grid has no zero points"
            module = name.removesuffix(".weight")
            modules.append(module)
            arrays[f"{module}.weight_packed"] = packed(weight.qdata, task.bits)
            arrays[f"{module}.weight_scale"] = weight.scale.to(torch.float32).contiguous()
            arrays[f"{module}.weight_shape"] = torch.tensor(weight.qdata.shape)
        else:
            arrays[name] = weight.detach().contiguous()
    write_pack_quantized(task, arrays, modules)


if __name__ == "__main__":
    quantize(Task.of_arguments())
