"""Turns a GGUF file into what the other programs load; runs in the environment `export`.

`python -m bench.peers.export FORM SOURCE OUT`. The weights are those of the file: dequantized to a folder as
transformers writes it, and rounded again by each program's own exporter to 4 bits in groups of 32, or to 8
bits where it knows no 4 (CTranslate2).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_SHARD = "1GB"


def folder(model: Path, out: Path) -> None:
    """Write a folder of bf16 weights, config and tokenizer."""
    import torch
    import transformers

    here = {"pretrained_model_name_or_path": str(model.parent), "gguf_file": model.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(**here, dtype=torch.float32)
    config = loaded.config
    # A model that came from GGUF cannot be saved; one of the same config with its weights can.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = transformers.LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    del loaded
    plain.to(torch.bfloat16).save_pretrained(out, max_shard_size=MOST_SHARD)
    transformers.AutoTokenizer.from_pretrained(**here).save_pretrained(out)


def openvino(source: Path, out: Path) -> None:
    """Write OpenVINO's int4 form: symmetric, groups of 32, the head too (by default in int8)."""
    command = [Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", source]
    options = (
        "--task text-generation-with-past --weight-format int4 --sym --group-size 32 --ratio 1.0 --all-layers"
    )
    subprocess.run([*command, *options.split(), out], check=True)


def onnxruntime(source: Path, out: Path) -> None:
    """Write ONNX Runtime GenAI's int4 form: blocks of 32, int8 arithmetic, the last token's logits alone."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out]
        options = ["-p", "int4", "-e", "cpu", "-c", cache]
        extra = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32", "prune_lm_head=true"]
        subprocess.run([*command, *options, *extra], check=True)


def ctranslate2(source: Path, out: Path) -> None:
    """Write CTranslate2's int8 form."""
    command = [Path(sys.executable).with_name("ct2-transformers-converter"), "--model", source]
    subprocess.run([*command, "--output_dir", out, "--quantization", "int8"], check=True)


FORMS = {"folder": folder, "openvino": openvino, "onnxruntime": onnxruntime, "ctranslate2": ctranslate2}


def main() -> None:
    """Write one form aside, then rename it."""
    form, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    FORMS[form](source, partial)
    partial.rename(out)


if __name__ == "__main__":
    main()
