"""Load a model and make one token, as a user of each program would: `-P cold_start.py PROGRAM MODEL THREADS`.

Runs in the program's own environment and imports nothing else (without -P, transformers would take kernels.py
beside this file for a package of that name); prints the seconds since its parent's BENCH_START, by the clock
that all processes share.
"""

import json
import os
import sys
import time
from collections.abc import Callable

PROMPT = "The capital of France is"


def tokc(path: str, threads: int) -> str:
    """Make a token with tokc."""
    import tokc

    return tokc.load(path, threads=threads).generate(PROMPT, max_tokens=1, temperature=0.0).text


def llamacpp(path: str, threads: int) -> str:
    """Make a token with llama.cpp."""
    import llama_cpp

    model = llama_cpp.Llama(path, n_threads=threads, n_threads_batch=threads, verbose=False)
    return model(PROMPT, max_tokens=1, temperature=0.0)["choices"][0]["text"]


def openvino(path: str, threads: int) -> str:
    """Make a token with OpenVINO GenAI, which keeps a compiled model beside the exported one."""
    import openvino_genai

    settings = {"INFERENCE_NUM_THREADS": threads, "CACHE_DIR": f"{path}.cache", "ATTENTION_BACKEND": "SDPA"}
    pipeline = openvino_genai.LLMPipeline(path, "CPU", **settings)
    return str(pipeline.generate(PROMPT, max_new_tokens=1, do_sample=False, apply_chat_template=False))


def onnxruntime(path: str, threads: int) -> str:
    """Make a token with ONNX Runtime GenAI."""
    import onnxruntime_genai as og

    config = og.Config(path)
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    ids = tokenizer.encode(PROMPT)
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + 1, do_sample=False)
    generator = og.Generator(model, settings)
    generator.append_tokens(ids)
    generator.generate_next_token()
    return str(tokenizer.decode(generator.get_next_tokens()))


def torch(path: str, threads: int) -> str:
    """Make a token with PyTorch and transformers."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    ids = tokenizer(PROMPT, return_tensors="pt")
    return str(tokenizer.decode(model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1]))


PROGRAMS: dict[str, Callable[[str, int], str]] = {
    "tokc": tokc,
    "llamacpp": llamacpp,
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "torch": torch,
}


def main() -> None:
    """Print the seconds and the text."""
    program, path, threads = sys.argv[1:]
    text = PROGRAMS[program](path, int(threads))
    value = time.monotonic() - float(os.environ["BENCH_START"])
    print(json.dumps({"value": value, "repeats": [value], "text": text}), flush=True)


if __name__ == "__main__":
    main()
